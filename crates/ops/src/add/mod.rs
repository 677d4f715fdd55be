//! Sums and multiples of tensors.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::dispatch::by_device;
use keyfold_tensor::Tensor;

/// `out = a + b`. `out` may be `a` or `b`.
///
/// # Shapes
/// - a, b, out: `[rows, cols]`
///
/// # Panics
/// When the shapes differ.
pub fn forward(a: &Tensor, b: &Tensor, out: &mut Tensor) {
    assert_eq!((b.rows(), b.cols()), (a.rows(), a.cols()), "add: b is not shaped like a");
    assert_eq!((out.rows(), out.cols()), (a.rows(), a.cols()), "add: out is not shaped like a");
    by_device!(out, cpu::add(a, b, out), cuda::add(a, b, out));
}

/// `out += x`: the backward of a sum, once per operand.
///
/// # Shapes
/// - out, x: `[rows, cols]`
///
/// # Panics
/// When the shapes differ.
pub fn assign(out: &mut Tensor, x: &Tensor) {
    assert_eq!((out.rows(), out.cols()), (x.rows(), x.cols()), "add::assign: out is not shaped like x");
    by_device!(out, cpu::add(&out.clone(), x, out), cuda::add(out, x, out));
}

/// `out = factor * x`, or `out += factor * x` when `accumulate` is set. `out` may be `x`.
///
/// # Shapes
/// - x, out: `[rows, cols]`
///
/// # Panics
/// When the shapes differ.
pub fn scale(x: &Tensor, factor: f32, out: &mut Tensor, accumulate: bool) {
    assert_eq!((out.rows(), out.cols()), (x.rows(), x.cols()), "add::scale: out is not shaped like x");
    by_device!(out, cpu::scale(x, factor, out, accumulate), cuda::scale(x, factor, out, accumulate));
}
