//! Copies between element types and layouts.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

pub(crate) use cpu::widen;

use crate::dispatch::by_device;
use keyfold_tensor::Tensor;

/// `out = x`, each with its own element type and row stride. f32 is rounded to the nearest bf16, ties to even; NaN stays
/// NaN.
///
/// # Shapes
/// - x, out: `[rows, cols]`, f32 or bf16
///
/// # Panics
/// When the shapes differ.
pub fn copy(x: &Tensor, out: &mut Tensor) {
    assert_eq!((out.rows(), out.cols()), (x.rows(), x.cols()), "cast::copy: out is not shaped like x");
    by_device!(out, cpu::copy(x, out), cuda::copy(x, out));
}
