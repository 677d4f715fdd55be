//! Gradients of weights that every token row shares.

use super::{Kernel, Rows, block_rows, for_lanes, launch, scratch};
use keyfold_tensor::Tensor;
use pulp::Simd;
use std::ops::Range;

/// Sums over token rows (the gradient of a weight per column), one partial sum per block of rows.
///
/// Blocks have a fixed size and are added up in order, so the result does not depend on the number of threads.
pub(crate) struct ColumnSums {
    partial: Tensor,
    block: usize,
}

impl ColumnSums {
    /// For `rows` rows that are handled in blocks of `block`.
    pub(crate) fn new(rows: usize, block: usize, cols: usize) -> Self {
        Self { partial: scratch(rows.div_ceil(block), cols), block }
    }

    /// Where the sums of each block go.
    pub(crate) fn blocks(&self) -> Blocks {
        Blocks { rows: Rows::of(&self.partial), cols: self.partial.cols(), block: self.block }
    }

    /// Adds the sums to the row `target`, or overwrites it.
    pub(crate) fn finish(self, target: &mut Tensor, accumulate: bool) {
        let (blocks, cols) = (self.partial.rows(), self.partial.cols());
        let kernel =
            Finish { partial: Rows::of(&self.partial), blocks, target: Rows::of(target), accumulate };
        launch(cols, block_rows(blocks), &kernel);
    }
}

/// The partial sums of a [`ColumnSums`].
#[derive(Clone, Copy)]
pub(crate) struct Blocks {
    rows: Rows,
    cols: usize,
    block: usize,
}

impl Blocks {
    /// The row that collects the block that starts at token row `start`, set to zero.
    ///
    /// # Safety
    /// `start` must be the first row of a block of the launch that the sums were made for.
    #[inline(always)]
    pub(crate) unsafe fn start(self, start: usize) -> *mut f32 {
        // SAFETY: the block has a row of its own.
        unsafe {
            let sums = self.rows.row(start / self.block);
            sums.write_bytes(0, self.cols);
            sums
        }
    }
}

struct Finish {
    partial: Rows,
    blocks: usize,
    target: Rows,
    accumulate: bool,
}

impl Kernel for Finish {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, cols: Range<usize>) {
        for_lanes(
            simd,
            cols.len(),
            #[inline(always)]
            // SAFETY: `cols` are columns of both; each has one writer.
            |lanes| unsafe {
                let mut sum = simd.splat_f32s(0.0);
                for block in 0..self.blocks {
                    sum = simd.add_f32s(sum, lanes.load(simd, self.partial.row(block).add(cols.start)));
                }
                lanes.put(simd, self.target.row(0).add(cols.start), sum, self.accumulate);
            },
        );
    }
}
