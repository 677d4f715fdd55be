//! The maps on plain rows in double precision, and their gradients.

/// `x w^T` of `x` [t, input] and `w` [output, input].
pub(super) fn forward(x: &[f64], w: &[f64], input: usize, output: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for x in x.chunks_exact(input) {
        out.extend(
            w.chunks_exact(input).take(output).map(|w| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>()),
        );
    }
    out
}

/// `dy w` and `dy^T x` of `dy` [t, output].
pub(super) fn backward(
    dy: &[f64],
    x: &[f64],
    w: &[f64],
    input: usize,
    output: usize,
) -> (Vec<f64>, Vec<f64>) {
    let mut dx = vec![0.0; x.len()];
    let mut dw = vec![0.0; w.len()];
    for ((dy, x), dx) in dy.chunks_exact(output).zip(x.chunks_exact(input)).zip(dx.chunks_exact_mut(input)) {
        for ((dy, w), dw) in dy.iter().zip(w.chunks_exact(input)).zip(dw.chunks_exact_mut(input)) {
            for i in 0..input {
                dx[i] += dy * w[i];
                dw[i] += dy * x[i];
            }
        }
    }
    (dx, dw)
}
