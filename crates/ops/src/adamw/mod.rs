//! AdamW (arXiv 1711.05101) and the norm of a gradient.

mod cpu;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use keyfold_tensor::Tensor;

/// The numbers of one AdamW step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the running mean of gradients.
    pub beta1: f64,
    /// Decay of the running mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the corrected second moment.
    pub eps: f64,
    /// Decoupled weight decay: the parameter loses `lr * weight_decay` of itself.
    pub weight_decay: f64,
    /// Number of this step, from 1.
    pub step: u64,
    /// Multiplies the gradient first (clipping, mean over micro-batches).
    pub grad_scale: f64,
}

/// One step, in one pass over memory, with the formula and the order of `torch.optim.AdamW`:
/// ```text
/// g = grad_scale * grad
/// param -= lr * weight_decay * param
/// m += (1 - beta1) * (g - m)
/// v = beta2 * v + (1 - beta2) * g^2
/// param -= lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
/// ```
///
/// # Shapes
/// - param, grad, m, v: the same, contiguous
///
/// # Panics
/// When the shapes differ, a tensor has gaps between its rows, or `hyper.step` is 0.
pub fn step(param: &mut Tensor, grad: &Tensor, m: &mut Tensor, v: &mut Tensor, hyper: &Hyper) {
    assert!(hyper.step > 0, "adamw: steps count from 1");
    for (name, tensor) in [("param", &*param), ("grad", grad), ("m", m), ("v", v)] {
        assert!(tensor.is_contiguous(), "adamw: {name} has gaps between its rows");
        assert_eq!((tensor.rows(), tensor.cols()), (grad.rows(), grad.cols()), "adamw: shape of {name}");
    }
    cpu::step(param, grad, m, v, hyper);
}

/// Sum of the squares of all elements, the same for any number of threads. Infinite or NaN when an element is, and
/// infinite when a square leaves the range of f32 (elements above about 1e17): such a gradient is not worth a step.
///
/// # Shapes
/// - grad: any, contiguous
///
/// # Panics
/// When the tensor has gaps between its rows.
pub fn sum_of_squares(grad: &Tensor) -> f64 {
    assert!(grad.is_contiguous(), "adamw::sum_of_squares: the tensor has gaps between its rows");
    cpu::sum_of_squares(grad)
}
