//! Muon (Keller Jordan, 2024, <https://kellerjordan.github.io/posts/muon>): momentum whose singular values are all moved
//! close to 1 before it is applied. For the weight matrices inside a model; embeddings, heads and vectors take AdamW.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::dispatch::by_device;
use keyfold_tensor::Tensor;

/// Steps of the Newton-Schulz iteration.
const STEPS: usize = 5;
/// `a, b, c` of the iteration `X <- a X + b (X X^T) X + c (X X^T)^2 X`. They are chosen for the steepest slope at 0: the
/// singular values do not converge to 1 but end up between about 0.7 and 1.2, which serves as well.
const COEFFICIENTS: [f32; 3] = [3.4445, -4.7750, 2.0315];
/// Keeps the normalisation finite for a zero gradient.
const NORM_EPS: f64 = 1e-7;

/// The numbers of one Muon step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    /// Learning rate. The update has singular values of about 1, whatever the gradient's size.
    pub lr: f64,
    /// Decay of the running mean of gradients, usually 0.95.
    pub momentum: f64,
    /// Decoupled weight decay: the parameter loses `lr * weight_decay` of itself.
    pub weight_decay: f64,
    /// Multiplies the gradient first (mean over micro-batches). It has no effect on a first step's direction.
    pub grad_scale: f64,
}

/// One step with Nesterov momentum:
/// ```text
/// g = grad_scale * grad
/// m += (1 - momentum) * (g - m)
/// u = newton_schulz((1 - momentum) * g + momentum * m)
/// param -= lr * (weight_decay * param + sqrt(max(1, rows / cols)) * u)
/// ```
/// The root keeps the change of the outputs as large for tall matrices as for wide ones.
///
/// # Shapes
/// - param, grad, m: `[rows, cols]`
///
/// # Panics
/// When the shapes differ.
pub fn step(param: &mut Tensor, grad: &Tensor, m: &mut Tensor, hyper: &Hyper) {
    assert_eq!(
        (param.rows(), param.cols()),
        (grad.rows(), grad.cols()),
        "muon: param is not shaped like grad"
    );
    assert_eq!((m.rows(), m.cols()), (grad.rows(), grad.cols()), "muon: m is not shaped like grad");
    if !grad.is_empty() {
        by_device!(param, cpu::step(param, grad, m, hyper), cuda::step(param, grad, m, hyper));
    }
}
