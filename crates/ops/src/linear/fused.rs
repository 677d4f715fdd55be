//! A product of a few rows with what comes before and after it: decoding's form, in which a GPU starts as few kernels as
//! possible.

use super::{check, check_bias, forward};
#[cfg(feature = "cuda")]
use super::{few, product::of_few_rows, skinny};
use crate::{
    glu::{self, Activation},
    rms_norm,
};
use keyfold_core::DType;
#[cfg(feature = "cuda")]
use keyfold_tensor::Device;
use keyfold_tensor::{Arena, Tensor};

/// What is done with the input and the result of a product.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fused<'a> {
    /// RMSNorm of the input: gain `[1, in]` and epsilon.
    pub norm: Option<(&'a Tensor, f32)>,
    /// The activation of gates, which are the first half of the outputs; the others are multiplied with it.
    pub gate: Option<Activation>,
    /// Add to what is there.
    pub accumulate: bool,
}

/// Whether [`forward_fused`] of `x` and `w` is one pass.
pub fn fuses(x: &Tensor, w: &Tensor) -> bool {
    #[cfg(feature = "cuda")]
    return x.device() != Device::Cpu && (few::serves(x, w) || skinny::serves(x, w));
    #[cfg(not(feature = "cuda"))]
    {
        // The host has no such kernel, and no other device is there.
        let _ = (x, w);
        false
    }
}

/// `out (+)= gated(norm(x) w^T + bias)`; see [`Fused`]. Where that is one pass, what is between is not rounded.
///
/// # Shapes
/// As [`forward`]; with a gate `out` is [T, out / 2].
///
/// # Panics
/// When the shapes or element types do not match, or a gate is added to something.
pub fn forward_fused(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, fused: Fused<'_>, out: &mut Tensor) {
    let halves = if fused.gate.is_some() { 2 } else { 1 };
    assert_eq!(out.cols() * halves, w.rows(), "linear: outputs of a fused product");
    assert!(fused.gate.is_none() || !fused.accumulate, "linear: a gated product that is added to something");
    if let Some((gain, _)) = fused.norm {
        assert_eq!((gain.rows(), gain.cols()), (1, x.cols()), "linear: gain of a fused norm");
    }
    if fused.gate.is_none() {
        check("linear", x, w, out);
        check_bias("linear", bias, out);
    }
    #[cfg(feature = "cuda")]
    if x.device() != Device::Cpu && of_few_rows(x, w, bias, fused, out) {
        return;
    }
    parts(x, w, bias, fused, out);
}

/// One after the other.
fn parts(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, fused: Fused<'_>, out: &mut Tensor) {
    let arena = Arena::beside(x);
    let normed = fused.norm.map(|(gain, eps)| {
        let mut normed = arena.tensor(x.rows(), x.cols(), x.dtype());
        let mut rstd = arena.tensor(x.rows(), 1, DType::F32);
        rms_norm::forward(x, None, gain, eps, None, &mut normed, &mut rstd);
        normed
    });
    let x = normed.as_ref().unwrap_or(x);
    match fused.gate {
        None => forward(x, w, bias, out, fused.accumulate),
        Some(activation) => {
            let mut gates = arena.tensor(x.rows(), w.rows(), out.dtype());
            forward(x, w, bias, &mut gates, false);
            glu::forward(activation, &gates, out);
        }
    }
}
