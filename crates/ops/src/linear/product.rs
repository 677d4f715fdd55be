//! What the kernels for few rows have in common: which of them takes a product, and what becomes of it.

use super::{Fused, chain, few, skinny};
use crate::{cuda::check, glu::Activation};
use keyfold_core::DType;
use keyfold_tensor::{Tensor, cuda::Gpu};

/// `Product` of product.cuh.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Product {
    out: u64,
    out_stride: i64,
    bias: u64,
    gain: u64,
    eps: f32,
    tokens: i32,
    inputs: i32,
    out_width: i32,
    accumulate: i32,
    out_f32: i32,
    activation: i32,
    wide: i32,
}

impl Product {
    /// That of `x` and `w` into `out`.
    ///
    /// # Panics
    /// When the element types are not those of the kernels.
    pub(super) fn new(
        gpu: &Gpu,
        x: &Tensor,
        w: &Tensor,
        bias: Option<&Tensor>,
        fused: Fused<'_>,
        out: &Tensor,
    ) -> Self {
        check("linear", gpu, DType::Bf16, &[("x", x), ("w", w)]);
        if let Some(bias) = bias {
            check("linear", gpu, DType::F32, &[("bias", bias)]);
        }
        if let Some((gain, _)) = fused.norm {
            check("linear", gpu, DType::F32, &[("gain", gain)]);
        }
        let pitch = out.stride() * out.dtype().bytes();
        Self {
            out: out.address(),
            out_stride: out.stride() as i64,
            bias: bias.map_or(0, Tensor::address),
            gain: fused.norm.map_or(0, |(gain, _)| gain.address()),
            eps: fused.norm.map_or(0.0, |(_, eps)| eps),
            tokens: x.rows() as i32,
            inputs: w.cols() as i32,
            out_width: out.cols() as i32,
            accumulate: i32::from(fused.accumulate),
            out_f32: i32::from(out.dtype() == DType::F32),
            activation: match fused.gate {
                None => -1,
                Some(Activation::Silu) => 0,
                Some(Activation::GeluTanh) => 1,
            },
            wide: i32::from(out.address().is_multiple_of(16) && pitch.is_multiple_of(16)),
        }
    }
}

/// Whether the kernels can read them: bf16, whole 16 bytes at a time, up to `most` rows of `x`.
pub(super) fn serves(x: &Tensor, w: &Tensor, most: usize) -> bool {
    let aligned = x.address().is_multiple_of(16) && w.address().is_multiple_of(16);
    let eights = w.cols().is_multiple_of(8) && (x.rows() == 1 || x.stride().is_multiple_of(8));
    let bf16 = x.dtype() == DType::Bf16 && w.dtype() == DType::Bf16;
    (1..=most).contains(&x.rows()) && w.cols() > 0 && bf16 && aligned && eights
}

/// Has the product computed by a kernel for few rows, or put off for one; false where none takes it. See
/// [`super::forward_fused`].
pub(super) fn of_few_rows(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    fused: Fused<'_>,
    out: &Tensor,
) -> bool {
    if chain::serves(x, w) {
        chain::put_off(x, w, bias, fused, out);
        return true;
    }
    at_once(x, w, bias, fused, out)
}

/// The same by a kernel of its own.
pub(super) fn at_once(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, fused: Fused<'_>, out: &Tensor) -> bool {
    if few::serves(x, w) {
        few::run(x, w, bias, fused, out);
        return true;
    }
    let takes = skinny::serves(x, w) && (fused.norm.is_none() || skinny::norms(x, w));
    if takes {
        skinny::run(x, w, bias, fused, out);
    }
    takes
}
