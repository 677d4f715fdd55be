//! The gated activation of an MLP (GLU variants, arXiv 2002.05202): `activation(gate) * up`.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::dispatch::by_device;
use keyfold_tensor::Tensor;

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
