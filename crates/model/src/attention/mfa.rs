//! Multi-matrix factorization attention (arXiv 2412.19255, section 3; Step-3's layer, arXiv 2507.19427, section 2).
//!
//! One key and one value of width C serve m query heads of width C, whose queries pass through a rank-r factor.
//! Cache: `k` and `v`, C values each.

use super::{
    Attention, CachedAttention, Design, Scale, Shared,
    key_value::{KeyValue, KeyValueSizes},
    query::{Query, QuerySizes},
};
use crate::{
    config::LocalConfig,
    error::{ConfigError, WeightError, positive},
    placement::CacheStep,
    position::{self, Position, RopeScaling, Rotary},
    sequences::Sequences,
    tape::{Tape, Var},
    weights::{Declarations, Projection, Scope},
};
use keyfold_core::{CacheLayout, Capacity, Cost, Plane};
use serde::{Deserialize, Serialize};

/// Multi-matrix factorization attention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MfaConfig {
    /// Query heads m.
    pub heads: usize,
    /// Width C of the shared key, the shared value and each query head.
    pub head_dim: usize,
    /// Rank r of the query factorisation; C by default, as in the paper.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_rank: Option<usize>,
    /// Whether the latent query is normalised (Step-3: yes).
    #[serde(default = "yes")]
    pub query_norm: bool,
    /// Position information.
    #[serde(default)]
    pub position: Position,
    /// Base of the rotary frequencies.
    #[serde(default = "position::default_theta")]
    pub rope_theta: f64,
    /// How the rotary frequencies were changed for longer sequences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
    /// Factor on scores; C^-0.5 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub softmax_scale: Option<f64>,
    /// Tokens that a token sees, itself included; all before it by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
}

pub(super) fn yes() -> bool {
    true
}

impl MfaConfig {
    /// Rank r of the query factorisation.
    pub fn rank(&self) -> usize {
        self.query_rank.unwrap_or(self.head_dim)
    }

    fn rotary(&self) -> Rotary {
        Rotary { scaling: self.rope_scaling, ..Rotary::plain(self.position, self.rope_theta) }
    }

    fn query(&self) -> QuerySizes {
        QuerySizes { heads: self.heads, head_dim: self.head_dim, rank: self.rank(), norm: self.query_norm }
    }

    fn module(&self, scope: &Scope<'_>, shared: &Shared) -> Result<Module, WeightError> {
        let sizes = KeyValueSizes {
            heads: self.heads,
            kv_heads: 1,
            width: self.head_dim,
            rotary: self.rotary(),
            softmax_scale: self.softmax_scale,
            window: self.window,
            qk_norm: false,
        };
        Ok(Module {
            down: scope.project(&["q_proj.weight", "k_proj.weight", "v_proj.weight"])?,
            widths: [self.rank(), self.head_dim, self.head_dim],
            query: Query::new(self.query(), scope, shared)?,
            core: KeyValue::new(sizes, scope, shared)?,
        })
    }
}

impl Design for MfaConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        positive("heads", self.heads)?;
        positive("head_dim", self.head_dim)?;
        positive("query_rank", self.rank())?;
        positive("window", self.window.unwrap_or(1))?;
        self.rotary().validate(self.head_dim, "head_dim")?;
        position::validate_scale(self.softmax_scale)
    }

    fn declare(&self, hidden: usize, layers: usize, list: &mut Declarations) -> Result<(), ConfigError> {
        list.matrix("q_proj.weight", self.rank(), hidden)?;
        list.matrix("k_proj.weight", self.head_dim, hidden)?;
        list.matrix("v_proj.weight", self.head_dim, hidden)?;
        self.query().declare(list)?;
        list.output("o_proj.weight", hidden, self.heads * self.head_dim, layers)
    }

    fn cache_layout(&self) -> Result<CacheLayout, ConfigError> {
        let width = self.head_dim;
        Ok(CacheLayout::new([Plane { name: "k", width }, Plane { name: "v", width }])?)
    }

    fn capacity(&self) -> Capacity {
        let rank_per_head = self.rank().min(self.head_dim);
        Capacity { heads: self.heads, rank_per_head, shared_latent_dim: self.head_dim }
    }

    fn cost(&self, hidden: usize) -> Cost {
        let mixed = self.heads * self.head_dim;
        Cost {
            linear_flops: self.query().flops(hidden) + 2 * (hidden * (2 * self.head_dim + mixed)) as u64,
            flops_per_context_token: 4 * mixed as u64,
            elements_per_context_token: 2 * self.head_dim as u64,
        }
    }

    fn heads(&self) -> usize {
        self.heads
    }

    fn with_heads(&self, heads: usize) -> Self {
        Self { heads, ..self.clone() }
    }

    fn preset(scale: &Scale) -> Self {
        Self {
            heads: 2 * scale.hidden / scale.shared_width(),
            head_dim: scale.shared_width(),
            query_rank: None,
            query_norm: true,
            position: scale.position,
            rope_theta: scale.rope_theta,
            rope_scaling: None,
            softmax_scale: None,
            window: None,
        }
    }

    fn windowed(&self, local: &LocalConfig) -> Option<Self> {
        let rope_theta = local.rope_theta.unwrap_or(self.rope_theta);
        let rope_scaling = self.rope_scaling.filter(|_| local.rope_theta.is_none());
        Some(Self { window: Some(local.window), rope_theta, rope_scaling, ..self.clone() })
    }

    fn training(&self, scope: &Scope<'_>, shared: &Shared) -> Result<Box<dyn Attention>, WeightError> {
        Ok(Box::new(self.module(scope, shared)?))
    }

    fn decoding(&self, scope: &Scope<'_>, shared: &Shared) -> Result<Box<dyn CachedAttention>, WeightError> {
        Ok(Box::new(self.module(scope, shared)?))
    }
}

struct Module {
    down: Projection,
    /// Columns of latent queries, keys and values.
    widths: [usize; 3],
    query: Query,
    core: KeyValue,
}

impl Module {
    /// Queries [T, m * C], keys and values [T, C] of `x`.
    fn project(&self, tape: &mut Tape, x: &Var) -> [Var; 3] {
        let down = tape.project(x, &self.down);
        let [latent, k, v] = tape.split(down, self.widths);
        [self.query.forward(tape, &latent), k, v]
    }
}

impl Attention for Module {
    fn forward(&self, tape: &mut Tape, x: &Var, sequences: &Sequences) -> Var {
        let qkv = self.project(tape, x);
        self.core.train(tape, qkv, sequences)
    }
}

impl CachedAttention for Module {
    fn forward(&self, tape: &mut Tape, x: &Var, step: &CacheStep<'_>) -> Var {
        let qkv = self.project(tape, x);
        self.core.decode(tape, qkv, step)
    }
}
