//! Columns whose keys are cut into parts: what comes of each part, and their combination.

use super::{forward::Outcome, rows::HeadRows, scratch::padded};
use crate::simd::scratch;
use keyfold_tensor::Tensor;

/// Outcomes of parts of columns; whoever uses it says which row is whose.
pub(super) struct Parts {
    tensor: Tensor,
    width: usize,
}

impl Parts {
    /// Room for `rows` outcomes of `width` values.
    pub(super) fn new(rows: usize, width: usize) -> Self {
        Self { tensor: scratch(rows, padded(width) + 2), width }
    }

    /// Keeps `outcome` in `row`.
    ///
    /// # Safety
    /// Nobody else is at work on that row.
    #[inline(always)]
    pub(super) unsafe fn keep(&self, row: usize, outcome: &Outcome<'_>) {
        // SAFETY: the caller's.
        let row = unsafe { self.tensor.row_mut(row) };
        row[0] = outcome.max;
        row[1] = outcome.sum;
        row[2..2 + self.width].copy_from_slice(outcome.values);
    }

    /// Writes the attention output of the column whose parts are `rows` to `row` of `out`.
    ///
    /// # Safety
    /// All parts are there, and nobody else is at work on that row of that head.
    pub(super) unsafe fn combine(&self, rows: std::ops::Range<usize>, out: &HeadRows, row: usize) {
        let parts = rows.map(|part| {
            // SAFETY: the parts have been written.
            unsafe { self.tensor.row(part) }
        });
        let max = parts.clone().fold(f32::NEG_INFINITY, |max, part| max.max(part[0]));
        let weight = |part: &[f32]| if part[1] > 0.0 { (part[0] - max).exp2() } else { 0.0 };
        let sum: f32 = parts.clone().map(|part| part[1] * weight(part)).sum();
        for (index, part) in parts.enumerate() {
            // SAFETY: the caller's.
            unsafe { out.write(row, weight(part) / sum, &part[2..], index > 0) };
        }
    }
}
