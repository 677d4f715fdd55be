//! Token by token: the factors of a token stay in L1, the heads are read or written once.

use crate::simd::{Kernel, Rows, block_rows, for_lanes, launch, sum};
use keyfold_tensor::Tensor;
use pulp::Simd;
use std::ops::Range;

pub(super) fn combine(a: &Tensor, b: &Tensor, heads: usize, out: &mut Tensor) {
    let kernel =
        Combine { a: Rows::of(a), b: Rows::of(b), out: Rows::of(out), sizes: Sizes::of(a, heads, out) };
    launch(out.rows(), block_rows(out.cols()), &kernel);
}

pub(super) fn backward(
    d_out: &Tensor,
    a: &Tensor,
    b: &Tensor,
    heads: usize,
    d_a: &mut Tensor,
    d_b: &mut Tensor,
    accumulate: bool,
) {
    let kernel = Backward {
        d_out: Rows::of(d_out),
        a: Rows::of(a),
        b: Rows::of(b),
        d_a: Rows::of(d_a),
        d_b: Rows::of(d_b),
        accumulate,
        sizes: Sizes::of(a, heads, d_out),
    };
    launch(d_out.rows(), block_rows(d_out.cols()), &kernel);
}

#[derive(Clone, Copy)]
struct Sizes {
    heads: usize,
    rank: usize,
    width: usize,
}

impl Sizes {
    fn of(a: &Tensor, heads: usize, out: &Tensor) -> Self {
        Self { heads, rank: a.cols() / heads, width: out.cols() / heads }
    }
}

struct Combine {
    a: Rows,
    b: Rows,
    out: Rows,
    sizes: Sizes,
}

impl Kernel for Combine {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>) {
        let Sizes { heads, rank, width } = self.sizes;
        let share = 1.0 / rank as f32;
        for row in rows {
            // SAFETY: here and below, the mod's asserts: all have that row, of the columns that the sizes say.
            let (a, b, out) = unsafe { (self.a.row(row), self.b.row(row), self.out.row(row)) };
            for head in 0..heads {
                // SAFETY: as above.
                let out = unsafe { out.add(head * width) };
                for_lanes(
                    simd,
                    width,
                    #[inline(always)]
                    // SAFETY: as above.
                    |lanes| unsafe {
                        let mut sum = simd.splat_f32s(0.0);
                        for r in 0..rank {
                            let a = simd.splat_f32s(*a.add(r * heads + head));
                            sum = simd.mul_add_e_f32s(a, lanes.load(simd, b.add(r * width)), sum);
                        }
                        lanes.store(simd, out, simd.mul_f32s(sum, simd.splat_f32s(share)));
                    },
                );
            }
        }
    }
}

struct Backward {
    d_out: Rows,
    a: Rows,
    b: Rows,
    d_a: Rows,
    d_b: Rows,
    accumulate: bool,
    sizes: Sizes,
}

impl Kernel for Backward {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>) {
        let Sizes { heads, rank, width } = self.sizes;
        let share = 1.0 / rank as f32;
        for row in rows {
            // SAFETY: here and below, the mod's asserts: all have that row, of the columns that the sizes say.
            let (d_out, a, b) = unsafe { (self.d_out.row(row), self.a.row(row), self.b.row(row)) };
            // SAFETY: as above.
            let (d_a, d_b) = unsafe { (self.d_a.row(row), self.d_b.row(row)) };
            for (head, r) in (0..heads).flat_map(|head| (0..rank).map(move |r| (head, r))) {
                // SAFETY: as above.
                let (a, d_out, b, d_b) = unsafe {
                    let a = *a.add(r * heads + head) * share;
                    (simd.splat_f32s(a), d_out.add(head * width), b.add(r * width), d_b.add(r * width))
                };
                let dot = sum(
                    simd,
                    width,
                    #[inline(always)]
                    // SAFETY: as above.
                    |dot, lanes| unsafe {
                        let d_out = lanes.load(simd, d_out);
                        // The first head starts the sum over heads.
                        lanes.put(simd, d_b, simd.mul_f32s(a, d_out), self.accumulate || head > 0);
                        simd.mul_add_e_f32s(d_out, lanes.load(simd, b), dot)
                    },
                );
                // SAFETY: as above.
                unsafe {
                    let d_a = d_a.add(r * heads + head);
                    *d_a = dot * share + if self.accumulate { *d_a } else { 0.0 };
                }
            }
        }
    }
}
