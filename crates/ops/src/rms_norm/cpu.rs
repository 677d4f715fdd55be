//! Two passes over each group, the second one from L1: memory is read once.

use crate::simd::{Blocks, ColumnSums, Kernel, Rows, block_rows, dot, for_lanes, launch, sum};
use keyfold_tensor::Tensor;
use pulp::Simd;
use std::ops::Range;

pub(super) fn forward(
    x: &Tensor,
    residual: Option<(&Tensor, &mut Tensor)>,
    weight: &Tensor,
    eps: f32,
    out: &mut Tensor,
    rstd: &mut Tensor,
) {
    let kernel = Forward {
        x: Rows::of(x),
        residual: residual.map(|(residual, sum)| (Rows::of(residual), Rows::of(sum))),
        weight: Rows::of(weight),
        eps,
        out: Rows::of(out),
        rstd: Rows::of(rstd),
        groups: rstd.cols(),
        width: weight.cols(),
    };
    launch(x.rows(), block_rows(x.cols()), &kernel);
}

pub(super) fn backward(
    d_out: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    rstd: &Tensor,
    d_x: &mut Tensor,
    accumulate: bool,
    d_weight: &mut Tensor,
) {
    let (rows, block) = (x.rows(), block_rows(x.cols()));
    let sums = ColumnSums::new(rows, block, weight.cols());
    let kernel = Backward {
        d_out: Rows::of(d_out),
        x: Rows::of(x),
        weight: Rows::of(weight),
        rstd: Rows::of(rstd),
        d_x: Rows::of(d_x),
        accumulate,
        d_weight: sums.blocks(),
        groups: rstd.cols(),
        width: weight.cols(),
    };
    launch(rows, block, &kernel);
    sums.finish(d_weight, true);
}

struct Forward {
    x: Rows,
    residual: Option<(Rows, Rows)>,
    weight: Rows,
    eps: f32,
    out: Rows,
    rstd: Rows,
    groups: usize,
    width: usize,
}

impl Kernel for Forward {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>) {
        let width = self.width;
        // SAFETY: here and below, the mod's asserts: all tensors have these rows and columns.
        let weight = unsafe { self.weight.row(0) };
        for (row, group) in rows.flat_map(|row| (0..self.groups).map(move |group| (row, group))) {
            let at = group * width;
            // SAFETY: as above.
            let (x, out) = unsafe { (self.x.row(row).add(at), self.out.row(row).add(at)) };
            let (x, squares) = match self.residual {
                // SAFETY: as above.
                None => unsafe { (x, dot(simd, width, x, x)) },
                Some((residual, total)) => {
                    // SAFETY: as above.
                    let (residual, total) = unsafe { (residual.row(row).add(at), total.row(row).add(at)) };
                    let squares = sum(
                        simd,
                        width,
                        #[inline(always)]
                        // SAFETY: as above.
                        |squares, lanes| unsafe {
                            let s = simd.add_f32s(lanes.load(simd, x), lanes.load(simd, residual));
                            lanes.store(simd, total, s);
                            simd.mul_add_e_f32s(s, s, squares)
                        },
                    );
                    (total, squares)
                }
            };
            let rstd = 1.0 / (squares / width as f32 + self.eps).sqrt();
            // SAFETY: as above.
            unsafe { *self.rstd.row(row).add(group) = rstd };
            let rstd = simd.splat_f32s(rstd);
            for_lanes(
                simd,
                width,
                #[inline(always)]
                // SAFETY: as above.
                |lanes| unsafe {
                    let scaled = simd.mul_f32s(lanes.load(simd, x), rstd);
                    lanes.store(simd, out, simd.mul_f32s(scaled, lanes.load(simd, weight)));
                },
            );
        }
    }
}

struct Backward {
    d_out: Rows,
    x: Rows,
    weight: Rows,
    rstd: Rows,
    d_x: Rows,
    accumulate: bool,
    d_weight: Blocks,
    groups: usize,
    width: usize,
}

impl Kernel for Backward {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>) {
        let width = self.width;
        // SAFETY: here and below, the mod's asserts: all tensors have these rows and columns. `launch` hands out the
        // blocks that the sums were made for.
        let (weight, d_weight) = unsafe { (self.weight.row(0), self.d_weight.start(rows.start)) };
        for (row, group) in rows.flat_map(|row| (0..self.groups).map(move |group| (row, group))) {
            let at = group * width;
            // SAFETY: as above.
            let (d_out, x, d_x, rstd) = unsafe {
                let (d_out, x) = (self.d_out.row(row).add(at), self.x.row(row).add(at));
                (d_out, x, self.d_x.row(row).add(at), *self.rstd.row(row).add(group))
            };
            let product = sum(
                simd,
                width,
                #[inline(always)]
                // SAFETY: as above.
                |sum, lanes| unsafe {
                    let d_scaled = simd.mul_f32s(lanes.load(simd, d_out), lanes.load(simd, weight));
                    simd.mul_add_e_f32s(d_scaled, lanes.load(simd, x), sum)
                },
            );
            // With n = x * rstd: d_x = rstd * (d_n - n * mean(d_n * n)), d_n = d_out * weight.
            let pull = simd.splat_f32s(-product * rstd * rstd / width as f32);
            let rstd = simd.splat_f32s(rstd);
            for_lanes(
                simd,
                width,
                #[inline(always)]
                // SAFETY: as above. In place is fine: the lanes are read before they are written.
                |lanes| unsafe {
                    let (d_out, x) = (lanes.load(simd, d_out), lanes.load(simd, x));
                    let d_n = simd.mul_f32s(d_out, lanes.load(simd, weight));
                    let d_weight_term = simd.mul_f32s(d_out, simd.mul_f32s(x, rstd));
                    lanes.put(simd, d_weight, d_weight_term, true);
                    let d_s = simd.mul_f32s(rstd, simd.mul_add_e_f32s(x, pull, d_n));
                    lanes.put(simd, d_x, d_s, self.accumulate);
                },
            );
        }
    }
}
