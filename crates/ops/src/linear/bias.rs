//! Sums over token rows.

use crate::simd::{Blocks, ColumnSums, Kernel, Rows, block_rows, for_lanes, launch};
use keyfold_tensor::Tensor;
use pulp::Simd;
use std::ops::Range;

pub(super) fn backward(dy: &Tensor, d_bias: &mut Tensor, accumulate: bool) {
    let (rows, cols) = (dy.rows(), dy.cols());
    let block = block_rows(cols);
    let sums = ColumnSums::new(rows, block, cols);
    launch(rows, block, &AddUp { dy: Rows::of(dy), sums: sums.blocks(), cols });
    sums.finish(d_bias, accumulate);
}

struct AddUp {
    dy: Rows,
    sums: Blocks,
    cols: usize,
}

impl Kernel for AddUp {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>) {
        // SAFETY: `launch` hands out the blocks that the sums were made for.
        let sums = unsafe { self.sums.start(rows.start) };
        for row in rows {
            // SAFETY: here and below, the mod's asserts: that row of `cols` columns.
            let dy = unsafe { self.dy.row(row) };
            for_lanes(
                simd,
                self.cols,
                #[inline(always)]
                // SAFETY: as above.
                |lanes| unsafe {
                    lanes.store(simd, sums, simd.add_f32s(lanes.load(simd, sums), lanes.load(simd, dy)));
                },
            );
        }
    }
}
