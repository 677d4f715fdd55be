//! Heads as a sum of tensor products of two factors (TPA, arXiv 2501.06425, section 3.1).
//!
//! Letters: T tokens, R rank, M heads, D width of a head. The factor `a` holds R rows of M per token, `b` R rows of D.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::dispatch::by_device;
use keyfold_tensor::Tensor;

/// `out[t, h, :] = (1 / R) * sum_r a[t, r, h] * b[t, r, :]`.
///
/// # Shapes
/// - a: `[T, R * M]`
/// - b: `[T, R * D]`
/// - out: `[T, M * D]`, where M is `heads`
///
/// # Panics
/// When the shapes do not fit.
pub fn combine(a: &Tensor, b: &Tensor, heads: usize, out: &mut Tensor) {
    check("tpa", a, b, heads, out);
    by_device!(out, cpu::combine(a, b, heads, out), cuda::combine(a, b, heads, out));
}

/// Gradients of [`combine`] by both factors, overwritten, or added to when `accumulate` is set.
///
/// # Shapes
/// - d_out: `[T, M * D]`
/// - a, d_a: `[T, R * M]`
/// - b, d_b: `[T, R * D]`
///
/// # Panics
/// When the shapes do not fit.
pub fn backward(
    d_out: &Tensor,
    a: &Tensor,
    b: &Tensor,
    heads: usize,
    d_a: &mut Tensor,
    d_b: &mut Tensor,
    accumulate: bool,
) {
    check("tpa::backward", a, b, heads, d_out);
    assert_eq!((d_a.rows(), d_a.cols()), (a.rows(), a.cols()), "tpa::backward: d_a is not shaped like a");
    assert_eq!((d_b.rows(), d_b.cols()), (b.rows(), b.cols()), "tpa::backward: d_b is not shaped like b");
    by_device!(
        d_out,
        cpu::backward(d_out, a, b, heads, d_a, d_b, accumulate),
        cuda::backward(d_out, a, b, heads, d_a, d_b, accumulate)
    );
}

fn check(op: &str, a: &Tensor, b: &Tensor, heads: usize, out: &Tensor) {
    assert!(heads > 0 && a.cols() > 0 && a.cols().is_multiple_of(heads), "{op}: a of {} columns", a.cols());
    assert!(out.cols().is_multiple_of(heads), "{op}: {} columns for {heads} heads", out.cols());
    assert_eq!(b.cols(), a.cols() / heads * (out.cols() / heads), "{op}: columns of b");
    assert_eq!((a.rows(), b.rows()), (out.rows(), out.rows()), "{op}: rows of the factors");
}
