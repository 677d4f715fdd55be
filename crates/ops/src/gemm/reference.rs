//! The product on plain rows in double precision.

/// `alpha a b` of `a` [m, k] and `b` [k, n].
pub(super) fn gemm(alpha: f64, a: &[f64], b: &[f64], (m, n, k): (usize, usize, usize)) -> Vec<f64> {
    let mut out = vec![0.0; m * n];
    for i in 0..m {
        for p in 0..k {
            for j in 0..n {
                out[i * n + j] += alpha * a[i * k + p] * b[p * n + j];
            }
        }
    }
    out
}
