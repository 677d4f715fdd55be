//! Token by token in double precision.

use super::{GroupScore, Router, Scoring};

fn scores(scoring: Scoring, logits: &[f64]) -> Vec<f64> {
    match scoring {
        Scoring::Sigmoid => logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
        Scoring::Softmax => {
            let sum: f64 = logits.iter().map(|x| x.exp()).sum();
            logits.iter().map(|x| x.exp() / sum).collect()
        }
    }
}

/// Chosen experts and weights of one token, by full sorts.
pub(super) fn route(router: &Router, logits: &[f64], bias: Option<&[f64]>) -> (Vec<u32>, Vec<f64>) {
    let scores = scores(router.scoring, logits);
    let rated: Vec<f64> = scores.iter().enumerate().map(|(e, s)| s + bias.map_or(0.0, |b| b[e])).collect();
    let size = rated.len() / router.groups;
    let rate = |group: usize| {
        let mut sorted = rated[group * size..][..size].to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        match router.group_score {
            GroupScore::Best => sorted[0],
            GroupScore::BestTwo => sorted.iter().take(2).sum(),
        }
    };
    let mut groups: Vec<usize> = (0..router.groups).collect();
    groups.sort_by(|a, b| rate(*b).total_cmp(&rate(*a)));
    groups.truncate(router.top_groups);
    let mut order: Vec<u32> =
        (0..rated.len() as u32).filter(|e| groups.contains(&(*e as usize / size))).collect();
    order.sort_by(|a, b| rated[*b as usize].total_cmp(&rated[*a as usize]));
    order.truncate(router.top_k);
    let weights = weights(router, logits, &order);
    (order, weights)
}

/// Weights of given experts.
pub(super) fn weights(router: &Router, logits: &[f64], chosen: &[u32]) -> Vec<f64> {
    let scores = scores(router.scoring, logits);
    let picked: Vec<f64> = chosen.iter().map(|e| scores[*e as usize]).collect();
    let total: f64 = if router.normalise { picked.iter().sum() } else { 1.0 };
    picked.iter().map(|s| f64::from(router.scaling) * s / total).collect()
}
