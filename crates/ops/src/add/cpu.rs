//! One pass over memory, rows in blocks.

use crate::simd::{Kernel, Rows, block_rows, for_lanes, launch};
use keyfold_tensor::Tensor;
use pulp::Simd;
use std::ops::Range;

pub(super) fn add(a: &Tensor, b: &Tensor, out: &mut Tensor) {
    let kernel = Add { a: Rows::of(a), b: Rows::of(b), out: Rows::of(out), cols: a.cols() };
    launch(a.rows(), block_rows(a.cols()), &kernel);
}

pub(super) fn scale(x: &Tensor, factor: f32, out: &mut Tensor, accumulate: bool) {
    let kernel = Scale { x: Rows::of(x), factor, out: Rows::of(out), accumulate, cols: x.cols() };
    launch(x.rows(), block_rows(x.cols()), &kernel);
}

struct Add {
    a: Rows,
    b: Rows,
    out: Rows,
    cols: usize,
}

impl Kernel for Add {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>) {
        for row in rows {
            // SAFETY: the mod's asserts: all have that row and `cols` columns.
            let (a, b, out) = unsafe { (self.a.row(row), self.b.row(row), self.out.row(row)) };
            for_lanes(
                simd,
                self.cols,
                #[inline(always)]
                // SAFETY: as above.
                |lanes| unsafe {
                    lanes.store(simd, out, simd.add_f32s(lanes.load(simd, a), lanes.load(simd, b)))
                },
            );
        }
    }
}

struct Scale {
    x: Rows,
    factor: f32,
    out: Rows,
    accumulate: bool,
    cols: usize,
}

impl Kernel for Scale {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>) {
        let factor = simd.splat_f32s(self.factor);
        for row in rows {
            // SAFETY: the mod's asserts: both have that row and `cols` columns.
            let (x, out) = unsafe { (self.x.row(row), self.out.row(row)) };
            for_lanes(
                simd,
                self.cols,
                #[inline(always)]
                // SAFETY: as above.
                |lanes| unsafe {
                    lanes.put(simd, out, simd.mul_f32s(factor, lanes.load(simd, x)), self.accumulate);
                },
            );
        }
    }
}
