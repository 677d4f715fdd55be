//! Copies in runs of one head's part; the backward sums the shared part in a register.

use crate::simd::{Kernel, Rows, block_rows, for_lanes, launch};
use keyfold_tensor::Tensor;
use pulp::Simd;
use std::ops::Range;

pub(super) fn forward(nope: &Tensor, stride: usize, k_pe: &Tensor, heads: usize, out: &mut Tensor) {
    let parts = Parts::of(nope, stride, k_pe, heads, out);
    launch(out.rows(), block_rows(out.cols()), &Forward(parts));
}

pub(super) fn backward(
    d_out: &Tensor,
    heads: usize,
    d_nope: &mut Tensor,
    stride: usize,
    d_pe: &mut Tensor,
    accumulate: bool,
) {
    let parts = Parts::of(d_nope, stride, d_pe, heads, d_out);
    launch(d_out.rows(), block_rows(d_out.cols()), &Backward { parts, accumulate });
}

/// The keys and their parts, or the gradients of these.
#[derive(Clone, Copy)]
struct Parts {
    nope: Rows,
    stride: usize,
    shared: Rows,
    whole: Rows,
    heads: usize,
    own_width: usize,
    shared_width: usize,
}

impl Parts {
    fn of(nope: &Tensor, stride: usize, shared: &Tensor, heads: usize, whole: &Tensor) -> Self {
        Self {
            nope: Rows::of(nope),
            stride,
            shared: Rows::of(shared),
            whole: Rows::of(whole),
            heads,
            own_width: whole.cols() / heads - shared.cols(),
            shared_width: shared.cols(),
        }
    }
}

struct Forward(Parts);

impl Kernel for Forward {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>) {
        let Parts { nope, stride, shared, whole, heads, own_width, shared_width } = self.0;
        for row in rows {
            // SAFETY: here and below, the mod's asserts: all have that row, of the columns that the parts say.
            let (nope, shared, whole) = unsafe { (nope.row(row), shared.row(row), whole.row(row)) };
            for head in 0..heads {
                // SAFETY: as above.
                let (from, to) =
                    unsafe { (nope.add(head * stride), whole.add(head * (own_width + shared_width))) };
                for_lanes(
                    simd,
                    own_width,
                    #[inline(always)]
                    // SAFETY: as above.
                    |lanes| unsafe { lanes.store(simd, to, lanes.load(simd, from)) },
                );
                for_lanes(
                    simd,
                    shared_width,
                    #[inline(always)]
                    // SAFETY: as above.
                    |lanes| unsafe { lanes.store(simd, to.add(own_width), lanes.load(simd, shared)) },
                );
            }
        }
    }
}

struct Backward {
    parts: Parts,
    accumulate: bool,
}

impl Kernel for Backward {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>) {
        let Parts { nope, stride, shared, whole, heads, own_width, shared_width } = self.parts;
        let width = own_width + shared_width;
        for row in rows {
            // SAFETY: here and below, the mod's asserts: all have that row, of the columns that the parts say.
            let (nope, shared, whole) = unsafe { (nope.row(row), shared.row(row), whole.row(row)) };
            for head in 0..heads {
                // SAFETY: as above.
                let (to, from) = unsafe { (nope.add(head * stride), whole.add(head * width)) };
                for_lanes(
                    simd,
                    own_width,
                    #[inline(always)]
                    // SAFETY: as above.
                    |lanes| unsafe { lanes.store(simd, to, lanes.load(simd, from)) },
                );
            }
            for_lanes(
                simd,
                shared_width,
                #[inline(always)]
                // SAFETY: as above.
                |lanes| unsafe {
                    let mut sum = simd.splat_f32s(0.0);
                    for head in 0..heads {
                        sum = simd.add_f32s(sum, lanes.load(simd, whole.add(head * width + own_width)));
                    }
                    lanes.put(simd, shared, sum, self.accumulate);
                },
            );
        }
    }
}
