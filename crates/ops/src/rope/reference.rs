//! Pair by pair in double precision, from the definition.

use super::{Heads, Pairing};

pub(super) struct Rope {
    pub(super) cols: usize,
    pub(super) heads: Heads,
    pub(super) width: usize,
    pub(super) theta: f64,
    pub(super) pairing: Pairing,
}

impl Rope {
    pub(super) fn apply(&self, x: &[f64], position: impl Fn(usize) -> usize, inverse: bool) -> Vec<f64> {
        let Self { cols, heads, width, theta, pairing } = *self;
        let mut out = x.to_vec();
        for row in 0..x.len() / cols {
            for (head, pair) in (0..heads.count).flat_map(|h| (0..width / 2).map(move |p| (h, p))) {
                let at = row * cols + head * heads.stride + heads.offset;
                let (i, j) = match pairing {
                    Pairing::HalfSplit => (at + pair, at + pair + width / 2),
                    Pairing::Interleaved => (at + 2 * pair, at + 2 * pair + 1),
                };
                let angle = position(row) as f64 * theta.powf(-2.0 * pair as f64 / width as f64);
                let (sin, cos) = if inverse { (-angle).sin_cos() } else { angle.sin_cos() };
                out[i] = x[i] * cos - x[j] * sin;
                out[j] = x[j] * cos + x[i] * sin;
            }
        }
        out
    }
}
