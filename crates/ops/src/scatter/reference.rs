//! The definition, row by row.

/// `out` [places, cols] after the rows of `x` [rows, cols] went to `at`.
pub(super) fn rows(x: &[f32], at: &[u32], out: &[f32], cols: usize) -> Vec<f32> {
    let mut out = out.to_vec();
    for (row, place) in at.iter().enumerate() {
        out[*place as usize * cols..][..cols].copy_from_slice(&x[row * cols..][..cols]);
    }
    out
}
