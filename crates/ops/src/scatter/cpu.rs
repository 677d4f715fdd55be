//! Copies of runs of rows: a cache's rows mostly follow one another.

use crate::cast;
use keyfold_tensor::Tensor;

pub(super) fn rows(x: &Tensor, at: &[u32], out: &mut Tensor) {
    let mut row = 0;
    for run in at.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
        cast::copy(&x.row_range(row, run.len()), &mut out.row_range(run[0] as usize, run.len()));
        row += run.len();
    }
}
