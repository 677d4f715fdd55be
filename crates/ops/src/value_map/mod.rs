//! The value made from the key in MFA with key reuse (MFA-KR, arXiv 2412.19255, section 3.2).
//!
//! `k` is the key and `n` its linear map `k N`, which the caller computes. Gated: `v = k + alpha * n` with one `alpha` per
//! channel, zero at the start of training. Residual: `v = k + n`, that is, without an `alpha`.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::dispatch::by_device;
use keyfold_tensor::Tensor;

/// `out = k + alpha * n`, or `out = k + n` without `alpha`. `out` may be `k` or `n`.
///
/// # Shapes
/// - k, n, out: `[tokens, width]`
/// - alpha: `[1, width]`
///
/// # Panics
/// When the shapes do not fit.
pub fn forward(k: &Tensor, n: &Tensor, alpha: Option<&Tensor>, out: &mut Tensor) {
    check_like("value_map: n", n, k);
    check_like("value_map: out", out, k);
    if let Some(alpha) = alpha {
        check_alpha("value_map: alpha", alpha, k);
    }
    by_device!(out, cpu::forward(k, n, alpha, out), cuda::forward(k, n, alpha, out));
}

/// What the backward needs of a gate.
#[derive(Debug)]
pub struct GateGradient<'a> {
    /// The mapped key of the forward, `[tokens, width]`.
    pub n: &'a Tensor,
    /// The gate, `[1, width]`.
    pub alpha: &'a Tensor,
    /// Gradient by the gate, `[1, width]`, added to.
    pub d_alpha: &'a mut Tensor,
}

/// Gradients of [`forward`]: `d_k = d_out`, `d_n = alpha * d_out`, `d_alpha += sum over tokens of n * d_out`.
///
/// `d_k` is overwritten, or added to when `accumulate` is set; `d_n` is overwritten. `d_n` may be `d_out` or `gate.n`.
///
/// # Shapes
/// - d_out, d_k, d_n: `[tokens, width]`
/// - gate: as its fields say; none for the residual form
///
/// # Panics
/// When the shapes do not fit.
pub fn backward(
    d_out: &Tensor,
    gate: Option<GateGradient<'_>>,
    d_k: &mut Tensor,
    accumulate: bool,
    d_n: &mut Tensor,
) {
    check_like("value_map::backward: d_k", d_k, d_out);
    check_like("value_map::backward: d_n", d_n, d_out);
    if let Some(gate) = &gate {
        check_like("value_map::backward: n", gate.n, d_out);
        check_alpha("value_map::backward: alpha", gate.alpha, d_out);
        check_alpha("value_map::backward: d_alpha", gate.d_alpha, d_out);
    }
    by_device!(
        d_out,
        cpu::backward(d_out, gate, d_k, accumulate, d_n),
        cuda::backward(d_out, gate, d_k, accumulate, d_n)
    );
}

fn check_like(name: &str, tensor: &Tensor, k: &Tensor) {
    assert_eq!((tensor.rows(), tensor.cols()), (k.rows(), k.cols()), "{name}");
}

fn check_alpha(name: &str, alpha: &Tensor, k: &Tensor) {
    assert_eq!((alpha.rows(), alpha.cols()), (1, k.cols()), "{name}");
}
