//! The filtered distribution by definition: everything sorted, double precision.

use super::Sampler;

/// Probability of each token.
pub(super) fn probabilities(sampler: &Sampler, logits: &[f32]) -> Vec<f64> {
    let temperature = f64::from(sampler.temperature);
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut kept: Vec<(usize, f64)> =
        logits.iter().map(|l| (f64::from(l - max) / temperature).exp()).enumerate().collect();
    kept.sort_by(|a, b| b.1.total_cmp(&a.1));
    kept.truncate(sampler.top_k.unwrap_or(usize::MAX));
    let total: f64 = kept.iter().map(|(_, w)| w).sum();
    let mut held = 0.0;
    let before_enough = |w: f64, held: &mut f64| {
        let more = *held < f64::from(sampler.top_p) * total;
        *held += w;
        more
    };
    kept.retain(|(_, w)| sampler.top_p >= 1.0 || before_enough(*w, &mut held));
    kept.retain(|(_, w)| *w >= f64::from(sampler.min_p));
    let total: f64 = kept.iter().map(|(_, w)| w).sum();
    let mut probabilities = vec![0.0; logits.len()];
    kept.iter().for_each(|(token, w)| probabilities[*token] = w / total);
    probabilities
}
