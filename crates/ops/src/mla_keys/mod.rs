//! Keys of naive multi-head latent attention (MLA, arXiv 2405.04434, section 2.1.3): each head's own part beside the part
//! that carries the position, which all heads share.
//!
//! Letters: T tokens, M heads, N width of a head's own part, P width of the shared part (0 without rope).

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::dispatch::by_device;
use keyfold_tensor::Tensor;

/// `out[t, h, :] = [nope[t, h, :] | k_pe[t, :]]`.
///
/// Head h's own part starts at column `h * stride` of `nope`: the parts may lie among others, as in the output of
/// `kv_b_proj`.
///
/// # Shapes
/// - nope: `[T, cols]` with `(M - 1) * stride + N <= cols`
/// - k_pe: `[T, P]`
/// - out: `[T, M * (N + P)]`, where M is `heads`
///
/// # Panics
/// When the shapes do not fit.
pub fn forward(nope: &Tensor, stride: usize, k_pe: &Tensor, heads: usize, out: &mut Tensor) {
    check("mla_keys", nope, stride, k_pe, heads, out);
    by_device!(
        out,
        cpu::forward(nope, stride, k_pe, heads, out),
        cuda::forward(nope, stride, k_pe, heads, out)
    );
}

/// Gradients of [`forward`]: that by `k_pe` is summed over the heads.
///
/// `d_nope` is overwritten, columns between the heads' parts are left alone. `d_pe` is overwritten, or added to when
/// `accumulate` is set.
///
/// # Shapes
/// - d_out: `[T, M * (N + P)]`, where M is `heads`
/// - d_nope: as `nope` of the forward
/// - d_pe: `[T, P]`
///
/// # Panics
/// When the shapes do not fit.
pub fn backward(
    d_out: &Tensor,
    heads: usize,
    d_nope: &mut Tensor,
    stride: usize,
    d_pe: &mut Tensor,
    accumulate: bool,
) {
    check("mla_keys::backward", d_nope, stride, d_pe, heads, d_out);
    by_device!(
        d_out,
        cpu::backward(d_out, heads, d_nope, stride, d_pe, accumulate),
        cuda::backward(d_out, heads, d_nope, stride, d_pe, accumulate)
    );
}

fn check(op: &str, nope: &Tensor, stride: usize, k_pe: &Tensor, heads: usize, out: &Tensor) {
    assert!(heads > 0 && out.cols().is_multiple_of(heads), "{op}: {} columns for {heads} heads", out.cols());
    let (width, shared) = (out.cols() / heads, k_pe.cols());
    assert!(shared <= width, "{op}: a shared part of {shared} in keys of {width}");
    let end = (heads - 1) * stride + width - shared;
    assert!(end <= nope.cols(), "{op}: the heads end at column {end} of {}", nope.cols());
    assert_eq!((nope.rows(), k_pe.rows()), (out.rows(), out.rows()), "{op}: rows of the parts");
}
