//! Token by token in double precision.

pub(super) fn forward(ids: &[u32], table: &[f64], width: usize) -> Vec<f64> {
    ids.iter().flat_map(|id| table[*id as usize * width..][..width].to_vec()).collect()
}

pub(super) fn backward(ids: &[u32], d_out: &[f64], vocabulary: usize, width: usize) -> Vec<f64> {
    let mut d_table = vec![0.0; vocabulary * width];
    for (token, id) in ids.iter().enumerate() {
        for col in 0..width {
            d_table[*id as usize * width + col] += d_out[token * width + col];
        }
    }
    d_table
}
