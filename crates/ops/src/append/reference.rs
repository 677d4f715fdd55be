//! The definition in double precision: pairs (a, b) of channels half a head apart.

/// `x` [tokens, heads * width] with every head rotated by the angles of its token's position.
pub(super) fn rotated(x: &[f32], positions: &[u32], heads: usize, width: usize, theta: f64) -> Vec<f64> {
    let half = width / 2;
    let mut out: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
    for (row, position) in out.chunks_exact_mut(heads * width).zip(positions) {
        for head in row.chunks_exact_mut(width) {
            for pair in 0..half {
                let angle = f64::from(*position) * theta.powf(-2.0 * pair as f64 / width as f64);
                let (a, b) = (head[pair], head[pair + half]);
                head[pair] = a * angle.cos() - b * angle.sin();
                head[pair + half] = b * angle.cos() + a * angle.sin();
            }
        }
    }
    out
}
