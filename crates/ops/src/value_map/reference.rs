//! Element by element in double precision. The residual form is `alpha = 1`.

pub(super) fn forward(k: &[f64], n: &[f64], alpha: &[f64]) -> Vec<f64> {
    (0..k.len()).map(|i| k[i] + alpha[i % alpha.len()] * n[i]).collect()
}

/// Gradients by `n` and by `alpha`; that by `k` is `d_out`.
pub(super) fn backward(d_out: &[f64], n: &[f64], alpha: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let mut d_alpha = vec![0.0; alpha.len()];
    for i in 0..n.len() {
        d_alpha[i % alpha.len()] += d_out[i] * n[i];
    }
    ((0..n.len()).map(|i| d_out[i] * alpha[i % alpha.len()]).collect(), d_alpha)
}
