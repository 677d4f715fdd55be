//! Product by product in double precision.

/// Heads, rank, width of a head.
pub(super) type Sizes = (usize, usize, usize);

pub(super) fn combine(a: &[f64], b: &[f64], (heads, rank, width): Sizes) -> Vec<f64> {
    let mut out = Vec::new();
    for t in 0..a.len() / (rank * heads) {
        for (h, w) in (0..heads).flat_map(|h| (0..width).map(move |w| (h, w))) {
            let term = |r| a[(t * rank + r) * heads + h] * b[(t * rank + r) * width + w];
            out.push((0..rank).map(term).sum::<f64>() / rank as f64);
        }
    }
    out
}

/// Gradients by `a` and by `b`.
pub(super) fn backward(
    d_out: &[f64],
    a: &[f64],
    b: &[f64],
    (heads, rank, width): Sizes,
) -> (Vec<f64>, Vec<f64>) {
    let (mut d_a, mut d_b) = (vec![0.0; a.len()], vec![0.0; b.len()]);
    for t in 0..a.len() / (rank * heads) {
        for (h, w) in (0..heads).flat_map(|h| (0..width).map(move |w| (h, w))) {
            let d = d_out[(t * heads + h) * width + w] / rank as f64;
            for r in 0..rank {
                let (at_a, at_b) = ((t * rank + r) * heads + h, (t * rank + r) * width + w);
                d_a[at_a] += d * b[at_b];
                d_b[at_b] += d * a[at_a];
            }
        }
    }
    (d_a, d_b)
}
