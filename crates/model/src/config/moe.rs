//! `[model.moe]`: layers whose MLP is a mixture of experts.

use crate::error::{ConfigError, positive};
use keyfold_ops::moe::{GroupScore, Router, Scoring};
use serde::{Deserialize, Serialize};

/// How router logits become scores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouterScoring {
    /// Softmax over all experts.
    #[default]
    Softmax,
    /// The sigmoid of each (DeepSeek-V3).
    Sigmoid,
}

/// A mixture of experts (arXiv 2401.06066): `top_k` of `experts` MLPs for every token, and a shared one for all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeConfig {
    /// Routed experts.
    pub experts: usize,
    /// Experts of a token.
    pub top_k: usize,
    /// Width of an expert's gate.
    pub expert_size: usize,
    /// Width of the gate of the MLP that every token passes; 0: there is none.
    #[serde(default)]
    pub shared_size: usize,
    /// Layers, counted from 0, that keep a dense MLP of `intermediate_size`.
    #[serde(default)]
    pub dense_layers: Vec<usize>,
    /// How router logits become scores.
    #[serde(default)]
    pub scoring: RouterScoring,
    /// Whether the chosen scores are divided by their sum.
    #[serde(default)]
    pub normalise: bool,
    /// Factor on the routed experts' answers.
    #[serde(default = "one")]
    pub scaling: f64,
    /// Groups that the experts are divided into.
    #[serde(default = "one_group")]
    pub groups: usize,
    /// Groups open to a token.
    #[serde(default = "one_group")]
    pub top_groups: usize,
    /// Whether scores are biased for the choice alone; groups are then rated by their two best experts
    /// (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).
    #[serde(default)]
    pub choice_bias: bool,
}

fn one() -> f64 {
    1.0
}

fn one_group() -> usize {
    1
}

impl MoeConfig {
    /// Whether layer `layer` is a mixture.
    pub fn covers(&self, layer: usize) -> bool {
        !self.dense_layers.contains(&layer)
    }

    pub(super) fn validate(&self, layers: usize) -> Result<(), ConfigError> {
        positive("experts", self.experts)?;
        positive("expert_size", self.expert_size)?;
        positive("groups", self.groups)?;
        positive("top_groups", self.top_groups)?;
        if !self.experts.is_multiple_of(self.groups) {
            let expected = format!("a divisor of experts = {}", self.experts);
            return Err(ConfigError::value("groups", expected, self.groups));
        }
        if self.top_groups > self.groups {
            let expected = format!("at most groups = {}", self.groups);
            return Err(ConfigError::value("top_groups", expected, self.top_groups));
        }
        let open = self.top_groups * (self.experts / self.groups);
        if self.top_k == 0 || self.top_k > open {
            let expected = format!("1 to {open}, the experts open to a token");
            return Err(ConfigError::value("top_k", expected, self.top_k));
        }
        if !(self.scaling.is_finite() && self.scaling > 0.0) {
            return Err(ConfigError::value("scaling", "a finite number above 0", self.scaling));
        }
        match self.dense_layers.iter().find(|layer| **layer >= layers) {
            Some(layer) => {
                let expected = format!("layers below num_hidden_layers = {layers}");
                Err(ConfigError::value("dense_layers", expected, layer))
            }
            None => Ok(()),
        }
    }

    pub(crate) fn router(&self) -> Router {
        Router {
            top_k: self.top_k,
            scoring: match self.scoring {
                RouterScoring::Softmax => Scoring::Softmax,
                RouterScoring::Sigmoid => Scoring::Sigmoid,
            },
            normalise: self.normalise,
            scaling: self.scaling as f32,
            groups: self.groups,
            top_groups: self.top_groups,
            group_score: if self.choice_bias { GroupScore::BestTwo } else { GroupScore::Best },
        }
    }
}
