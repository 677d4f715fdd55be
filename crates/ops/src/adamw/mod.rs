//! AdamW (arXiv 1711.05101) and the norm of a gradient.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::dispatch::by_device;
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

/// The norm of a gradient, which a device may still be computing.
#[derive(Clone, Debug)]
pub enum Norm {
    /// The norm.
    Known(f64),
    /// Its square on a device, an f64 in the place of two f32.
    Device(Tensor),
}

impl Norm {
    /// The norm of all `grads` as one vector, as [`sum_of_squares`] has it.
    ///
    /// # Panics
    /// When a tensor has gaps between its rows.
    pub fn of(grads: &[&Tensor]) -> Self {
        for grad in grads {
            assert!(grad.is_contiguous(), "adamw::Norm: a tensor has gaps between its rows");
        }
        let Some(first) = grads.first() else { return Self::Known(0.0) };
        by_device!(
            first,
            Self::Known(grads.iter().map(|grad| cpu::sum_of_squares(grad)).sum::<f64>().sqrt()),
            Self::Device(cuda::squares(grads))
        )
    }

    /// The norm. Waits for a device.
    pub fn read(&self) -> f64 {
        match self {
            Self::Known(norm) => *norm,
            Self::Device(squares) => {
                let bytes = squares.to_bytes();
                bytes.first_chunk().map_or(f64::NAN, |bytes| f64::from_le_bytes(*bytes)).sqrt()
            }
        }
    }
}

/// Keeps a gradient's norm from being above a limit, as `torch.nn.utils.clip_grad_norm_`.
#[derive(Clone, Copy, Debug)]
pub struct Clip<'a> {
    /// Norm of the whole gradient.
    pub norm: &'a Norm,
    /// The limit.
    pub max: f64,
}

impl Clip<'_> {
    /// What to multiply the gradient by; nothing when its norm is not finite. Waits for a device.
    pub fn factor(&self) -> Option<f64> {
        let norm = self.norm.read();
        // The epsilon is PyTorch's.
        norm.is_finite().then(|| (self.max / (norm + 1e-6)).min(1.0))
    }
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
/// The gradient is clipped first where there is a `clip`; nothing happens when its norm is not finite. `copy`, the bf16 form
/// of the parameters that a GPU's products use, receives them rounded.
///
/// # Shapes
/// - param, grad, m, v, copy: the same, contiguous
///
/// # Panics
/// When the shapes differ, a tensor has gaps between its rows, or `hyper.step` is 0.
pub fn step(
    param: &mut Tensor,
    grad: &Tensor,
    m: &mut Tensor,
    v: &mut Tensor,
    copy: Option<&mut Tensor>,
    hyper: &Hyper,
    clip: Option<Clip<'_>>,
) {
    assert!(hyper.step > 0, "adamw: steps count from 1");
    let all = [("param", &*param), ("grad", grad), ("m", m), ("v", v)];
    for (name, tensor) in all.into_iter().chain(copy.as_deref().map(|copy| ("copy", copy))) {
        assert!(tensor.is_contiguous(), "adamw: {name} has gaps between its rows");
        assert_eq!((tensor.rows(), tensor.cols()), (grad.rows(), grad.cols()), "adamw: shape of {name}");
    }
    by_device!(
        param,
        {
            let factor = match clip {
                None => Some(1.0),
                Some(clip) => clip.factor(),
            };
            if let Some(factor) = factor {
                cpu::step(param, grad, m, v, &Hyper { grad_scale: hyper.grad_scale * factor, ..*hyper });
                if let Some(copy) = copy {
                    crate::cast::copy(param, copy);
                }
            }
        },
        cuda::step([param, grad, m, v], copy.as_deref(), hyper, clip)
    );
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
    by_device!(grad, cpu::sum_of_squares(grad), {
        let norm = Norm::of(&[grad]).read();
        norm * norm
    })
}
