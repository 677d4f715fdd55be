//! The gated activation of an MLP (GLU variants, arXiv 2002.05202): `activation(gate) * up`.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::{dispatch::by_device, linear, simd::scratch};
use keyfold_core::DType;
use keyfold_tensor::{Device, Tensor};

/// The activation of the gate: `x * sigmoid(g(x))` with a `g` of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// `g(x) = x` (SwiGLU).
    #[default]
    Silu,
    /// GELU in its form with a hyperbolic tangent (arXiv 1606.08415): `g(x) = sqrt(8 / pi) (x + 0.044715 x^3)` (GeGLU).
    GeluTanh,
}

/// `sqrt(8 / pi)`.
const GELU_SCALE: f64 = 1.595_769_121_605_730_7;
/// Weight of the cube.
const GELU_CUBE: f64 = 0.044_715;

/// `out = activation(gate) * up`.
///
/// # Shapes
/// - gate_up: `[tokens, 2 * width]`: gate in the first half of the columns, up in the second
/// - out: `[tokens, width]`
///
/// # Panics
/// When the shapes do not fit.
pub fn forward(activation: Activation, gate_up: &Tensor, out: &mut Tensor) {
    check("glu", gate_up, out);
    by_device!(out, cpu::forward(activation, gate_up, out), cuda::forward(activation, gate_up, out));
}

/// A whole gated MLP: `out = (activation(x gate^T) * (x up^T)) down^T`.
///
/// The same values, to the last bit, as [`linear::forward_joined`], [`forward`] and [`linear::forward`] one after the
/// other, without their intermediate values in memory where that is faster.
///
/// # Shapes
/// - x: `[tokens, in]`, f32
/// - gate_up: `[gate; up]`, `[2 * width, in]` in all, one matrix or two of equal height, f32 or bf16
/// - down: `[out, width]`
/// - out: `[tokens, out]`
///
/// # Panics
/// When the shapes do not fit, or for tensors of a GPU.
pub fn mlp(activation: Activation, x: &Tensor, gate_up: &[&Tensor], down: &Tensor, out: &mut Tensor) {
    let rows: usize = gate_up.iter().map(|w| w.rows()).sum();
    assert_eq!(
        rows,
        2 * down.cols(),
        "glu::mlp: gate and up for a down projection of {} inputs",
        down.cols()
    );
    assert_eq!(
        (x.rows(), down.rows()),
        (out.rows(), out.cols()),
        "glu::mlp: rows and outputs of the down projection, for this output"
    );
    assert_eq!(x.device(), Device::Cpu, "glu::mlp: tensors of the host");
    mlp_cpu(activation, x, gate_up, down, out);
}

fn mlp_cpu(activation: Activation, x: &Tensor, gate_up: &[&Tensor], down: &Tensor, out: &mut Tensor) {
    let width = down.cols();
    let halves = match gate_up {
        [both] => Some([both.row_range(0, width), both.row_range(width, width)]),
        [gate, up] if gate.rows() == width => Some([(*gate).clone(), (*up).clone()]),
        _ => None,
    };
    if let Some([gate, up]) = halves
        && [&gate, &up, down].iter().all(|w| w.dtype() == DType::Bf16 && w.is_contiguous())
        && gate.cols() == x.cols()
        && up.cols() == x.cols()
        && cpu::mlp(activation, x, [&gate, &up, down], out)
    {
        return;
    }
    let mut sums = scratch(x.rows(), 2 * width);
    linear::forward_joined(x, gate_up, None, &mut sums);
    let mut hidden = scratch(x.rows(), width);
    forward(activation, &sums, &mut hidden);
    linear::forward(&hidden, down, None, out, false);
}

/// `d_gate_up`, overwritten, from `d_out`. `d_gate_up` may be `gate_up`.
///
/// # Shapes
/// - gate_up, d_gate_up: `[tokens, 2 * width]`
/// - d_out: `[tokens, width]`
///
/// # Panics
/// When the shapes do not fit.
pub fn backward(activation: Activation, gate_up: &Tensor, d_out: &Tensor, d_gate_up: &mut Tensor) {
    check("glu::backward", gate_up, d_out);
    check("glu::backward", d_gate_up, d_out);
    by_device!(
        d_out,
        cpu::backward(activation, gate_up, d_out, d_gate_up),
        cuda::backward(activation, gate_up, d_out, d_gate_up)
    );
}

fn check(op: &str, gate_up: &Tensor, out: &Tensor) {
    let want = (out.rows(), 2 * out.cols());
    assert_eq!((gate_up.rows(), gate_up.cols()), want, "{op}: gate and up for this output");
}
