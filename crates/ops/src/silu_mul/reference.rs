//! Element by element in double precision.

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

pub(super) fn forward(gate_up: &[f64], width: usize) -> Vec<f64> {
    let token =
        |row: &[f64]| (0..width).map(|i| row[i] * sigmoid(row[i]) * row[width + i]).collect::<Vec<_>>();
    gate_up.chunks_exact(2 * width).flat_map(token).collect()
}

pub(super) fn backward(gate_up: &[f64], d_out: &[f64], width: usize) -> Vec<f64> {
    let mut d_gate_up = vec![0.0; gate_up.len()];
    for (token, row) in gate_up.chunks_exact(2 * width).enumerate() {
        for i in 0..width {
            let (x, up, d) = (row[i], row[width + i], d_out[token * width + i]);
            let s = sigmoid(x);
            d_gate_up[token * 2 * width + i] = d * up * (s + x * s * (1.0 - s));
            d_gate_up[token * 2 * width + width + i] = d * x * s;
        }
    }
    d_gate_up
}
