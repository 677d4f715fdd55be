//! A model's weights, counted by part.

use super::shape::len;
use crate::PlanError;
use keyfold_model::{ModelConfig, weights::Part};
use std::collections::BTreeMap;

/// Parameters by part.
pub(super) struct Counts {
    pub(super) total: BTreeMap<Part, u64>,
    pub(super) active: BTreeMap<Part, u64>,
    pub(super) layers: Vec<BTreeMap<Part, u64>>,
    /// Elements of the matrices of MLPs and routers.
    matrices: BTreeMap<Part, u64>,
    /// Elements of the output head, tied or not.
    pub(super) head: u64,
}

impl Counts {
    pub(super) fn of(config: &ModelConfig) -> Result<Self, PlanError> {
        let mut counts = Self {
            total: BTreeMap::new(),
            active: BTreeMap::new(),
            layers: vec![BTreeMap::new(); config.num_hidden_layers],
            matrices: BTreeMap::new(),
            head: 0,
        };
        for weight in config.declare()? {
            let size = len(&weight);
            *counts.total.entry(weight.part).or_default() += size;
            if weight.is_matrix() {
                *counts.matrices.entry(weight.part).or_default() += size;
            }
            let number = weight.name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
            let layer = number.and_then(|number| number.parse().ok());
            if let Some(layer) = layer.and_then(|layer: usize| counts.layers.get_mut(layer)) {
                *layer.entry(weight.part).or_default() += size;
            }
        }
        let part = if config.tie_word_embeddings { Part::Embedding } else { Part::Head };
        counts.head = counts.total.get(&part).copied().unwrap_or(0);
        counts.active = counts
            .total
            .iter()
            .map(|(part, count)| (*part, counts.active_of(config, *part, *count)))
            .collect();
        Ok(counts)
    }

    /// How many of `count` parameters of `part` a token passes.
    pub(super) fn active_of(&self, config: &ModelConfig, part: Part, count: u64) -> u64 {
        match (part, &config.moe) {
            (Part::Experts, Some(moe)) => count / moe.experts as u64 * moe.top_k as u64,
            (Part::Embedding, _) if !config.tie_word_embeddings => 0,
            _ => count,
        }
    }

    pub(super) fn mlp_matrices(&self, config: &ModelConfig) -> u128 {
        let parts = [Part::Mlp, Part::Experts, Part::SharedExperts, Part::Router];
        let matrices = parts.map(|part| (part, self.matrices.get(&part).copied().unwrap_or(0)));
        matrices.into_iter().map(|(part, count)| u128::from(self.active_of(config, part, count))).sum()
    }

    pub(super) fn sum(&self, parts: &BTreeMap<Part, u64>) -> u64 {
        parts.values().sum()
    }
}
