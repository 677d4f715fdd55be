//! Flat passes over memory; a "row" of the launch is an element.

use super::Hyper;
use crate::simd::{BLOCK_ELEMENTS, Kernel, Rows, dot, for_lanes, launch, scratch};
use keyfold_tensor::Tensor;
use pulp::Simd;
use std::ops::Range;

pub(super) fn step(param: &mut Tensor, grad: &Tensor, m: &mut Tensor, v: &mut Tensor, hyper: &Hyper) {
    let correction1 = 1.0 - hyper.beta1.powf(hyper.step as f64);
    let correction2 = 1.0 - hyper.beta2.powf(hyper.step as f64);
    let kernel = Step {
        param: Rows::of(param),
        grad: Rows::of(grad),
        m: Rows::of(m),
        v: Rows::of(v),
        grad_scale: hyper.grad_scale as f32,
        keep: (1.0 - hyper.lr * hyper.weight_decay) as f32,
        gain1: (1.0 - hyper.beta1) as f32,
        beta2: hyper.beta2 as f32,
        gain2: (1.0 - hyper.beta2) as f32,
        root2: correction2.sqrt() as f32,
        eps: hyper.eps as f32,
        rate: (hyper.lr / correction1) as f32,
    };
    launch(grad.len(), BLOCK_ELEMENTS, &kernel);
}

pub(super) fn sum_of_squares(grad: &Tensor) -> f64 {
    let blocks = grad.len().div_ceil(BLOCK_ELEMENTS);
    let partial = scratch(1, blocks);
    launch(grad.len(), BLOCK_ELEMENTS, &Squares { grad: Rows::of(grad), partial: Rows::of(&partial) });
    // SAFETY: the kernel, the only writer, has ended.
    unsafe { partial.row(0) }.iter().map(|x| f64::from(*x)).sum()
}

struct Step {
    param: Rows,
    grad: Rows,
    m: Rows,
    v: Rows,
    grad_scale: f32,
    /// Share of the parameter that weight decay leaves.
    keep: f32,
    gain1: f32,
    beta2: f32,
    gain2: f32,
    /// Root of the second moment's bias correction.
    root2: f32,
    eps: f32,
    /// Learning rate over the first moment's bias correction.
    rate: f32,
}

impl Kernel for Step {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, elements: Range<usize>) {
        let splat = |x| simd.splat_f32s(x);
        let (grad_scale, keep, gain1) = (splat(self.grad_scale), splat(self.keep), splat(self.gain1));
        let (beta2, gain2, root2) = (splat(self.beta2), splat(self.gain2), splat(self.root2));
        let (eps, rate) = (splat(self.eps), splat(-self.rate));
        let at = |rows: Rows| {
            // SAFETY: the elements lie within the contiguous tensors, by the mod's asserts.
            unsafe { rows.row(0).add(elements.start) }
        };
        let (param, grad, m, v) = (at(self.param), at(self.grad), at(self.m), at(self.v));
        for_lanes(
            simd,
            elements.len(),
            #[inline(always)]
            // SAFETY: as above.
            |lanes| unsafe {
                let g = simd.mul_f32s(grad_scale, lanes.load(simd, grad));
                let m_old = lanes.load(simd, m);
                let m_new = simd.mul_add_e_f32s(gain1, simd.sub_f32s(g, m_old), m_old);
                let v_new = simd.mul_f32s(beta2, lanes.load(simd, v));
                let v_new = simd.mul_add_e_f32s(gain2, simd.mul_f32s(g, g), v_new);
                let below = simd.add_f32s(simd.div_f32s(simd.sqrt_f32s(v_new), root2), eps);
                let p = simd.mul_f32s(keep, lanes.load(simd, param));
                lanes.store(simd, param, simd.mul_add_e_f32s(rate, simd.div_f32s(m_new, below), p));
                lanes.store(simd, m, m_new);
                lanes.store(simd, v, v_new);
            },
        );
    }
}

struct Squares {
    grad: Rows,
    partial: Rows,
}

impl Kernel for Squares {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, elements: Range<usize>) {
        // SAFETY: the elements lie within the contiguous tensor, by the mod's assert; each block has its partial sum.
        unsafe {
            let grad = self.grad.row(0).add(elements.start);
            *self.partial.row(0).add(elements.start / BLOCK_ELEMENTS) = dot(simd, elements.len(), grad, grad);
        }
    }
}
