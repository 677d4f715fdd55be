//! Matrix products on scratch matrices; the smaller side's Gram matrix is used, so nothing is transposed.

use super::{COEFFICIENTS, Hyper, NORM_EPS, STEPS};
use crate::{
    adamw::sum_of_squares,
    add,
    gemm::{View, ViewMut, gemm},
    simd::{Kernel, Rows, block_rows, for_lanes, launch, scratch},
};
use keyfold_tensor::Tensor;
use pulp::Simd;
use std::ops::Range;

pub(super) fn step(param: &mut Tensor, grad: &Tensor, m: &mut Tensor, hyper: &Hyper) {
    let (rows, cols) = (grad.rows(), grad.cols());
    let block = block_rows(cols);
    let mut update = scratch(rows, cols);
    let momentum = Momentum {
        grad: Rows::of(grad),
        m: Rows::of(m),
        update: Rows::of(&update),
        grad_scale: hyper.grad_scale as f32,
        gain: (1.0 - hyper.momentum) as f32,
        momentum: hyper.momentum as f32,
        cols,
    };
    launch(rows, block, &momentum);
    orthogonalise(&mut update);
    let scale = (rows as f64 / cols as f64).max(1.0).sqrt();
    let apply = Apply {
        param: Rows::of(param),
        update: Rows::of(&update),
        keep: (1.0 - hyper.lr * hyper.weight_decay) as f32,
        rate: (hyper.lr * scale) as f32,
        cols,
    };
    launch(rows, block, &apply);
}

/// Moves the singular values of the contiguous `x` close to 1, by [`STEPS`] steps of the Newton-Schulz iteration.
pub(super) fn orthogonalise(x: &mut Tensor) {
    let [a, b, c] = COEFFICIENTS;
    let (rows, cols) = (x.rows(), x.cols());
    let side = rows.min(cols);
    let (mut gram, mut polynomial) = (scratch(side, side), scratch(side, side));
    let mut current = x.clone();
    let mut next = scratch(rows, cols);
    // The Frobenius norm bounds the largest singular value, which must not be above 1 at the start.
    let norm = sum_of_squares(&current).sqrt() + NORM_EPS;
    add::scale(&current.clone(), (1.0 / norm) as f32, &mut current, false);
    for _ in 0..STEPS {
        let view = View::of(&current);
        let (left, right) = if rows <= cols { (view, view.t()) } else { (view.t(), view) };
        gemm(ViewMut::of(&mut gram), false, 1.0, left, right);
        add::scale(&gram, b, &mut polynomial, false);
        gemm(ViewMut::of(&mut polynomial), true, c, View::of(&gram), View::of(&gram));
        add::scale(&current, a, &mut next, false);
        let polynomial = View::of(&polynomial);
        let (left, right) = if rows <= cols { (polynomial, view) } else { (view, polynomial) };
        gemm(ViewMut::of(&mut next), true, 1.0, left, right);
        std::mem::swap(&mut current, &mut next);
    }
    *x = current;
}

struct Momentum {
    grad: Rows,
    m: Rows,
    update: Rows,
    grad_scale: f32,
    /// One less the momentum.
    gain: f32,
    momentum: f32,
    cols: usize,
}

impl Kernel for Momentum {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>) {
        let (grad_scale, gain) = (simd.splat_f32s(self.grad_scale), simd.splat_f32s(self.gain));
        let momentum = simd.splat_f32s(self.momentum);
        for row in rows {
            // SAFETY: the mod's asserts: all have that row and `cols` columns.
            let (grad, m, update) = unsafe { (self.grad.row(row), self.m.row(row), self.update.row(row)) };
            for_lanes(
                simd,
                self.cols,
                #[inline(always)]
                // SAFETY: as above.
                |lanes| unsafe {
                    let g = simd.mul_f32s(grad_scale, lanes.load(simd, grad));
                    let m_old = lanes.load(simd, m);
                    let m_new = simd.mul_add_e_f32s(gain, simd.sub_f32s(g, m_old), m_old);
                    lanes.store(simd, m, m_new);
                    let nesterov = simd.mul_add_e_f32s(momentum, simd.sub_f32s(m_new, g), g);
                    lanes.store(simd, update, nesterov);
                },
            );
        }
    }
}

struct Apply {
    param: Rows,
    update: Rows,
    /// Share of the parameter that weight decay leaves.
    keep: f32,
    rate: f32,
    cols: usize,
}

impl Kernel for Apply {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>) {
        let (keep, rate) = (simd.splat_f32s(self.keep), simd.splat_f32s(-self.rate));
        for row in rows {
            // SAFETY: the mod's asserts: both have that row and `cols` columns.
            let (param, update) = unsafe { (self.param.row(row), self.update.row(row)) };
            for_lanes(
                simd,
                self.cols,
                #[inline(always)]
                // SAFETY: as above.
                |lanes| unsafe {
                    let p = simd.mul_f32s(keep, lanes.load(simd, param));
                    lanes.store(simd, param, simd.mul_add_e_f32s(rate, lanes.load(simd, update), p));
                },
            );
        }
    }
}
