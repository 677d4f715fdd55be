//! One pass over memory each way.

use super::GateGradient;
use crate::{
    add,
    simd::{Blocks, ColumnSums, Kernel, Rows, block_rows, for_lanes, launch},
};
use keyfold_tensor::Tensor;
use pulp::Simd;
use std::ops::Range;

pub(super) fn forward(k: &Tensor, n: &Tensor, alpha: Option<&Tensor>, out: &mut Tensor) {
    let Some(alpha) = alpha else {
        return add::forward(k, n, out);
    };
    let kernel = Forward {
        k: Rows::of(k),
        n: Rows::of(n),
        alpha: Rows::of(alpha),
        out: Rows::of(out),
        width: k.cols(),
    };
    launch(k.rows(), block_rows(k.cols()), &kernel);
}

pub(super) fn backward(
    d_out: &Tensor,
    gate: Option<GateGradient<'_>>,
    d_k: &mut Tensor,
    accumulate: bool,
    d_n: &mut Tensor,
) {
    let (rows, width) = (d_out.rows(), d_out.cols());
    let (d_out, d_k, d_n) = (Rows::of(d_out), Rows::of(d_k), Rows::of(d_n));
    let block = block_rows(width);
    let Some(GateGradient { n, alpha, d_alpha }) = gate else {
        return launch(rows, block, &Spread { d_out, d_k, accumulate, d_n, width });
    };
    let sums = ColumnSums::new(rows, block, width);
    let (n, alpha) = (Rows::of(n), Rows::of(alpha));
    let kernel = Gated { d_out, n, alpha, d_k, accumulate, d_n, d_alpha: sums.blocks(), width };
    launch(rows, block, &kernel);
    sums.finish(d_alpha, true);
}

struct Forward {
    k: Rows,
    n: Rows,
    alpha: Rows,
    out: Rows,
    width: usize,
}

impl Kernel for Forward {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>) {
        // SAFETY: here and below, the mod's asserts: all have that row and `width` columns.
        let alpha = unsafe { self.alpha.row(0) };
        for row in rows {
            // SAFETY: as above.
            let (k, n, out) = unsafe { (self.k.row(row), self.n.row(row), self.out.row(row)) };
            for_lanes(
                simd,
                self.width,
                #[inline(always)]
                // SAFETY: as above.
                |lanes| unsafe {
                    let (alpha, n) = (lanes.load(simd, alpha), lanes.load(simd, n));
                    lanes.store(simd, out, simd.mul_add_e_f32s(alpha, n, lanes.load(simd, k)));
                },
            );
        }
    }
}

/// The backward of the residual form: both operands get the gradient of the sum.
struct Spread {
    d_out: Rows,
    d_k: Rows,
    accumulate: bool,
    d_n: Rows,
    width: usize,
}

impl Kernel for Spread {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>) {
        for row in rows {
            // SAFETY: the mod's asserts: all have that row and `width` columns.
            let (d_out, d_k, d_n) = unsafe { (self.d_out.row(row), self.d_k.row(row), self.d_n.row(row)) };
            for_lanes(
                simd,
                self.width,
                #[inline(always)]
                // SAFETY: as above.
                |lanes| unsafe {
                    let d_out = lanes.load(simd, d_out);
                    lanes.put(simd, d_k, d_out, self.accumulate);
                    lanes.store(simd, d_n, d_out);
                },
            );
        }
    }
}

struct Gated {
    d_out: Rows,
    n: Rows,
    alpha: Rows,
    d_k: Rows,
    accumulate: bool,
    d_n: Rows,
    d_alpha: Blocks,
    width: usize,
}

impl Kernel for Gated {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>) {
        // SAFETY: here and below, the mod's asserts: all have that row and `width` columns. `launch` hands out the blocks
        // that the sums were made for.
        let (alpha, d_alpha) = unsafe { (self.alpha.row(0), self.d_alpha.start(rows.start)) };
        for row in rows {
            // SAFETY: as above.
            let (d_out, n, d_k, d_n) =
                unsafe { (self.d_out.row(row), self.n.row(row), self.d_k.row(row), self.d_n.row(row)) };
            for_lanes(
                simd,
                self.width,
                #[inline(always)]
                // SAFETY: as above. In place is fine: the lanes are read before they are written.
                |lanes| unsafe {
                    let (d_out, n) = (lanes.load(simd, d_out), lanes.load(simd, n));
                    lanes.put(simd, d_alpha, simd.mul_f32s(d_out, n), true);
                    lanes.put(simd, d_k, d_out, self.accumulate);
                    lanes.store(simd, d_n, simd.mul_f32s(d_out, lanes.load(simd, alpha)));
                },
            );
        }
    }
}
