//! Plain loops in double precision.

use super::{COEFFICIENTS, Hyper, NORM_EPS, STEPS};

/// `a b` for `a` of `m` rows and `b` of `k` rows.
fn product(a: &[f64], b: &[f64], m: usize, k: usize) -> Vec<f64> {
    let n = b.len() / k;
    (0..m * n).map(|i| (0..k).map(|j| a[i / n * k + j] * b[j * n + i % n]).sum()).collect()
}

pub(super) fn transpose(x: &[f64], rows: usize) -> Vec<f64> {
    let cols = x.len() / rows;
    (0..x.len()).map(|i| x[i % rows * cols + i / rows]).collect()
}

/// `x x^T`.
pub(super) fn gram(x: &[f64], rows: usize) -> Vec<f64> {
    product(x, &transpose(x, rows), rows, x.len() / rows)
}

pub(super) fn orthogonalise(x: &[f64], rows: usize) -> Vec<f64> {
    let [a, b, c] = COEFFICIENTS.map(f64::from);
    let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt() + NORM_EPS;
    let mut x: Vec<f64> = x.iter().map(|x| x / norm).collect();
    for _ in 0..STEPS {
        let gram = gram(&x, rows);
        let square = product(&gram, &gram, rows, rows);
        let polynomial: Vec<f64> = gram.iter().zip(&square).map(|(g, s)| b * g + c * s).collect();
        x = product(&polynomial, &x, rows, rows).iter().zip(&x).map(|(p, x)| a * x + p).collect();
    }
    x
}

pub(super) fn step(param: &mut [f64], grad: &[f64], m: &mut [f64], rows: usize, hyper: &Hyper) {
    let mut update = Vec::new();
    for i in 0..grad.len() {
        let g = hyper.grad_scale * grad[i];
        m[i] = hyper.momentum * m[i] + (1.0 - hyper.momentum) * g;
        update.push((1.0 - hyper.momentum) * g + hyper.momentum * m[i]);
    }
    let scale = (rows as f64 / (grad.len() / rows) as f64).max(1.0).sqrt();
    for (p, u) in param.iter_mut().zip(orthogonalise(&update, rows)) {
        *p -= hyper.lr * (hyper.weight_decay * *p + scale * u);
    }
}
