//! The gated activation of a SwiGLU MLP (arXiv 2002.05202): `silu(gate) * up`.

mod cpu;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use keyfold_tensor::Tensor;

/// `out = silu(gate) * up` with `silu(x) = x / (1 + e^-x)`.
///
/// # Shapes
/// - gate_up: `[tokens, 2 * width]`: gate in the first half of the columns, up in the second
/// - out: `[tokens, width]`
///
/// # Panics
/// When the shapes do not fit.
pub fn forward(gate_up: &Tensor, out: &mut Tensor) {
    check("silu_mul", gate_up, out);
    cpu::forward(gate_up, out);
}

/// `d_gate_up`, overwritten, from `d_out`. `d_gate_up` may be `gate_up`.
///
/// # Shapes
/// - gate_up, d_gate_up: `[tokens, 2 * width]`
/// - d_out: `[tokens, width]`
///
/// # Panics
/// When the shapes do not fit.
pub fn backward(gate_up: &Tensor, d_out: &Tensor, d_gate_up: &mut Tensor) {
    check("silu_mul::backward", gate_up, d_out);
    check("silu_mul::backward", d_gate_up, d_out);
    cpu::backward(gate_up, d_out, d_gate_up);
}

fn check(op: &str, gate_up: &Tensor, out: &Tensor) {
    let want = (out.rows(), 2 * out.cols());
    assert_eq!((gate_up.rows(), gate_up.cols()), want, "{op}: gate and up for this output");
}
