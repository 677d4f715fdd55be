//! Group by group in double precision.

pub(super) fn forward(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let group = |x: &[f64]| {
        let r = rstd(x, eps);
        x.iter().zip(weight).map(|(x, w)| x * r * w).collect::<Vec<_>>()
    };
    x.chunks_exact(weight.len()).flat_map(group).collect()
}

pub(super) fn rstd(x: &[f64], eps: f64) -> f64 {
    (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + eps).sqrt().recip()
}

/// Gradients by `x` and by the weight.
pub(super) fn backward(d_out: &[f64], x: &[f64], weight: &[f64], eps: f64) -> (Vec<f64>, Vec<f64>) {
    let width = weight.len();
    let (mut d_x, mut d_weight) = (vec![0.0; x.len()], vec![0.0; width]);
    for group in 0..x.len() / width {
        let at = group * width..(group + 1) * width;
        let (x, d_out, d_x) = (&x[at.clone()], &d_out[at.clone()], &mut d_x[at]);
        let r = rstd(x, eps);
        let mean: f64 = (0..width).map(|i| d_out[i] * weight[i] * x[i] * r).sum::<f64>() / width as f64;
        for i in 0..width {
            d_x[i] = r * (d_out[i] * weight[i] - x[i] * r * mean);
            d_weight[i] += d_out[i] * x[i] * r;
        }
    }
    (d_x, d_weight)
}
