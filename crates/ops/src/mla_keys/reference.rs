//! Head by head in double precision, on parts without gaps.

/// Heads, width of a head's own part, width of the shared part.
pub(super) type Sizes = (usize, usize, usize);

pub(super) fn forward(nope: &[f64], k_pe: &[f64], (heads, own, shared): Sizes) -> Vec<f64> {
    let tokens = nope.len() / (heads * own);
    (0..tokens * heads)
        .flat_map(|i| [&nope[i * own..][..own], &k_pe[i / heads * shared..][..shared]].concat())
        .collect()
}

/// Gradients by `nope` and by `k_pe`.
pub(super) fn backward(d_out: &[f64], (heads, own, shared): Sizes) -> (Vec<f64>, Vec<f64>) {
    let tokens = d_out.len() / (heads * (own + shared));
    let (mut d_nope, mut d_pe) = (Vec::new(), vec![0.0; tokens * shared]);
    for (i, d_key) in d_out.chunks_exact(own + shared).enumerate() {
        d_nope.extend_from_slice(&d_key[..own]);
        for j in 0..shared {
            d_pe[i / heads * shared + j] += d_key[own + j];
        }
    }
    (d_nope, d_pe)
}
