//! Element by element in double precision, GELU by its hyperbolic tangent.

use super::{Activation, GELU_CUBE, GELU_SCALE};

/// The activation and its slope.
fn activate(activation: Activation, x: f64) -> (f64, f64) {
    match activation {
        Activation::Silu => {
            let s = 1.0 / (1.0 + (-x).exp());
            (x * s, s + x * s * (1.0 - s))
        }
        Activation::GeluTanh => {
            let u = 0.5 * GELU_SCALE * (x + GELU_CUBE * x.powi(3));
            let du = 0.5 * GELU_SCALE * (1.0 + 3.0 * GELU_CUBE * x * x);
            let t = u.tanh();
            (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * du)
        }
    }
}

pub(super) fn forward(activation: Activation, gate_up: &[f64], width: usize) -> Vec<f64> {
    let token =
        |row: &[f64]| (0..width).map(|i| activate(activation, row[i]).0 * row[width + i]).collect::<Vec<_>>();
    gate_up.chunks_exact(2 * width).flat_map(token).collect()
}

pub(super) fn backward(activation: Activation, gate_up: &[f64], d_out: &[f64], width: usize) -> Vec<f64> {
    let mut d_gate_up = vec![0.0; gate_up.len()];
    for (token, row) in gate_up.chunks_exact(2 * width).enumerate() {
        for i in 0..width {
            let (up, d) = (row[width + i], d_out[token * width + i]);
            let (value, slope) = activate(activation, row[i]);
            d_gate_up[token * 2 * width + i] = d * up * slope;
            d_gate_up[token * 2 * width + width + i] = d * value;
        }
    }
    d_gate_up
}
