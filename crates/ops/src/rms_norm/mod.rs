//! Root-mean-square normalisation (arXiv 1910.07467), with the residual sum before it in the same pass.
//!
//! Letters: T tokens, D width of one group (the weight's), G groups per row. A row of `G * D` columns is normalised
//! group by group with the same weight: G = 1 for a layer norm, G = heads for a norm per head.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::dispatch::by_device;
use keyfold_tensor::Tensor;

/// `out = s / sqrt(mean(s^2) + eps) * weight` for `s = x + residual`, or `s = x` without a residual.
///
/// `sum_out`, required with a residual, receives `s`; it may be `x` or `residual`. `out` may be `x` when no later pass
/// needs `x`, and `rstd` receives `1 / sqrt(mean(s^2) + eps)`, which the backward reads.
///
/// # Shapes
/// - x, residual, sum_out, out: `[T, G * D]`
/// - weight: `[1, D]`
/// - rstd: `[T, G]`
///
/// # Panics
/// When the shapes do not fit, or a residual comes without `sum_out` (or the other way round).
pub fn forward(
    x: &Tensor,
    residual: Option<&Tensor>,
    weight: &Tensor,
    eps: f32,
    sum_out: Option<&mut Tensor>,
    out: &mut Tensor,
    rstd: &mut Tensor,
) {
    check("rms_norm", x, weight, rstd);
    check_like("rms_norm: out", out, x);
    assert_eq!(
        residual.is_some(),
        sum_out.is_some(),
        "rms_norm: a residual and a place for the sum go together"
    );
    let residual = residual.zip(sum_out);
    if let Some((residual, sum)) = &residual {
        check_like("rms_norm: residual", residual, x);
        check_like("rms_norm: sum_out", sum, x);
    }
    by_device!(
        x,
        cpu::forward(x, residual, weight, eps, out, rstd),
        cuda::forward(x, residual, weight, eps, out, rstd)
    );
}

/// Gradients of `forward` by `s` (which is also that by `x` and by `residual`) and by the weight.
///
/// `x` is what was normalised: the sum, where there was a residual. `d_x` is overwritten, or added to when `accumulate`
/// is set (the gradient that reaches the sum along the residual stream); it may be `d_out`, or `x`, which is then lost.
///
/// # Shapes
/// - d_out, x, d_x: `[T, G * D]`
/// - weight: `[1, D]`; d_weight: `[1, D]`, added to
/// - rstd: `[T, G]`, from the forward
///
/// # Panics
/// When the shapes do not fit.
pub fn backward(
    d_out: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    rstd: &Tensor,
    d_x: &mut Tensor,
    accumulate: bool,
    d_weight: &mut Tensor,
) {
    check("rms_norm::backward", x, weight, rstd);
    check_like("rms_norm::backward: d_out", d_out, x);
    check_like("rms_norm::backward: d_x", d_x, x);
    check_like("rms_norm::backward: d_weight", d_weight, weight);
    by_device!(
        x,
        cpu::backward(d_out, x, weight, rstd, d_x, accumulate, d_weight),
        cuda::backward(d_out, x, weight, rstd, d_x, accumulate, d_weight)
    );
}

fn check(op: &str, x: &Tensor, weight: &Tensor, rstd: &Tensor) {
    assert!(weight.rows() == 1 && weight.cols() > 0, "{op}: weight is one row");
    assert!(
        x.cols().is_multiple_of(weight.cols()),
        "{op}: {} columns in groups of {}",
        x.cols(),
        weight.cols()
    );
    assert_eq!((rstd.rows(), rstd.cols()), (x.rows(), x.cols() / weight.cols()), "{op}: rstd");
}

fn check_like(name: &str, tensor: &Tensor, x: &Tensor) {
    assert_eq!((tensor.rows(), tensor.cols()), (x.rows(), x.cols()), "{name}");
}
