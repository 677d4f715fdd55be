//! Multi-head, multi-query and grouped-query attention: one design with m query heads on g key/value heads,
//! under three names (arXiv 1706.03762, 1911.02150, 2305.13245).
//!
//! Cache: `k` and `v`, g * d values each.

use super::{
    Attention, CachedAttention, Design, Scale, Shared,
    key_value::{KeyValue, KeyValueSizes},
};
use crate::{
    cache::CacheStep,
    error::{ConfigError, WeightError, positive},
    position::{self, Position},
    sequences::Sequences,
    tape::{Tape, Var},
    weights::{Declarations, Param, Scope},
};
use keyfold_core::{CacheLayout, Capacity, Cost, Plane};
use serde::{Deserialize, Serialize};

/// Multi-head attention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MhaConfig {
    /// Query heads m, each with its own key and value.
    pub heads: usize,
    /// Head width d.
    pub head_dim: usize,
    /// Position information.
    #[serde(default)]
    pub position: Position,
    /// Base of the rotary frequencies.
    #[serde(default = "position::default_theta")]
    pub rope_theta: f64,
    /// Factor on scores; d^-0.5 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub softmax_scale: Option<f64>,
}

/// Multi-query attention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MqaConfig {
    /// Query heads m on one key and value.
    pub heads: usize,
    /// Head width d.
    pub head_dim: usize,
    /// Position information.
    #[serde(default)]
    pub position: Position,
    /// Base of the rotary frequencies.
    #[serde(default = "position::default_theta")]
    pub rope_theta: f64,
    /// Factor on scores; d^-0.5 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub softmax_scale: Option<f64>,
}

/// Grouped-query attention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GqaConfig {
    /// Query heads m, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key/value heads g.
    pub kv_heads: usize,
    /// Head width d.
    pub head_dim: usize,
    /// Position information.
    #[serde(default)]
    pub position: Position,
    /// Base of the rotary frequencies.
    #[serde(default = "position::default_theta")]
    pub rope_theta: f64,
    /// Factor on scores; d^-0.5 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub softmax_scale: Option<f64>,
}

/// The design behind the three names.
struct Grouped {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    position: Position,
    rope_theta: f64,
    softmax_scale: Option<f64>,
}

/// Makes a configuration a [`Design`] by way of [`Grouped`].
macro_rules! grouped_design {
    ($config:ident, |$this:ident| $kv_heads:expr, |$heads:ident, $old:ident| $with:expr, |$scale:ident| $preset:expr) => {
        impl $config {
            fn grouped(&self) -> Grouped {
                let $this = self;
                Grouped {
                    heads: self.heads,
                    kv_heads: $kv_heads,
                    head_dim: self.head_dim,
                    position: self.position,
                    rope_theta: self.rope_theta,
                    softmax_scale: self.softmax_scale,
                }
            }
        }

        impl Design for $config {
            fn validate(&self) -> Result<(), ConfigError> {
                self.grouped().validate()
            }
            fn declare(
                &self,
                hidden: usize,
                layers: usize,
                list: &mut Declarations,
            ) -> Result<(), ConfigError> {
                self.grouped().declare(hidden, layers, list)
            }
            fn cache_layout(&self) -> Result<CacheLayout, ConfigError> {
                self.grouped().cache_layout()
            }
            fn capacity(&self) -> Capacity {
                self.grouped().capacity()
            }
            fn cost(&self, hidden: usize) -> Cost {
                self.grouped().cost(hidden)
            }
            fn heads(&self) -> usize {
                self.heads
            }
            fn with_heads(&self, $heads: usize) -> Self {
                let $old = self.clone();
                $with
            }
            fn preset($scale: &Scale) -> Self {
                $preset
            }
            fn training(
                &self,
                scope: &Scope<'_>,
                shared: &Shared,
            ) -> Result<Box<dyn Attention>, WeightError> {
                Ok(Box::new(self.grouped().module(scope, shared)?))
            }
            fn decoding(
                &self,
                scope: &Scope<'_>,
                shared: &Shared,
            ) -> Result<Box<dyn CachedAttention>, WeightError> {
                Ok(Box::new(self.grouped().module(scope, shared)?))
            }
        }
    };
}

grouped_design!(MhaConfig, |config| config.heads, |heads, old| Self { heads, ..old }, |scale| Self {
    heads: scale.heads(),
    head_dim: scale.head_dim,
    position: Position::Rope,
    rope_theta: position::ROPE_THETA,
    softmax_scale: None,
});
grouped_design!(MqaConfig, |_config| 1, |heads, old| Self { heads, ..old }, |scale| Self {
    heads: scale.heads(),
    head_dim: scale.head_dim,
    position: Position::Rope,
    rope_theta: position::ROPE_THETA,
    softmax_scale: None,
});
grouped_design!(
    GqaConfig,
    |config| config.kv_heads,
    |heads, old| Self { heads: heads.div_ceil(old.kv_heads) * old.kv_heads, ..old },
    |scale| {
        let kv_heads = (scale.heads() / 4).max(2).min(scale.heads());
        Self {
            heads: scale.heads().div_ceil(kv_heads) * kv_heads,
            kv_heads,
            head_dim: scale.head_dim,
            position: Position::Rope,
            rope_theta: position::ROPE_THETA,
            softmax_scale: None,
        }
    }
);

impl Grouped {
    fn validate(&self) -> Result<(), ConfigError> {
        positive("heads", self.heads)?;
        positive("kv_heads", self.kv_heads)?;
        positive("head_dim", self.head_dim)?;
        if !self.heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a divisor of heads = {}", self.heads);
            return Err(ConfigError::value("kv_heads", expected, self.kv_heads));
        }
        position::validate(self.position, self.rope_theta, self.head_dim, "head_dim")?;
        position::validate_scale(self.softmax_scale)
    }

    fn declare(&self, hidden: usize, layers: usize, list: &mut Declarations) -> Result<(), ConfigError> {
        list.matrix("q_proj.weight", self.heads * self.head_dim, hidden)?;
        list.matrix("k_proj.weight", self.kv_heads * self.head_dim, hidden)?;
        list.matrix("v_proj.weight", self.kv_heads * self.head_dim, hidden)?;
        list.output("o_proj.weight", hidden, self.heads * self.head_dim, layers)
    }

    fn cache_layout(&self) -> Result<CacheLayout, ConfigError> {
        let width = self.kv_heads * self.head_dim;
        Ok(CacheLayout::new([Plane { name: "k", width }, Plane { name: "v", width }])?)
    }

    fn capacity(&self) -> Capacity {
        let shared_latent_dim = self.kv_heads * self.head_dim;
        Capacity { heads: self.heads, rank_per_head: self.head_dim, shared_latent_dim }
    }

    fn cost(&self, hidden: usize) -> Cost {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        Cost {
            linear_flops: 2 * (hidden * (2 * q + 2 * kv)) as u64,
            flops_per_context_token: 4 * q as u64,
            elements_per_context_token: 2 * kv as u64,
        }
    }

    fn module(&self, scope: &Scope<'_>, shared: &Shared) -> Result<Module, WeightError> {
        let sizes = KeyValueSizes {
            heads: self.heads,
            kv_heads: self.kv_heads,
            width: self.head_dim,
            position: self.position,
            rope_theta: self.rope_theta,
            softmax_scale: self.softmax_scale,
        };
        let kv = self.kv_heads * self.head_dim;
        Ok(Module {
            qkv: scope.span(&["q_proj.weight", "k_proj.weight", "v_proj.weight"])?,
            widths: [self.heads * self.head_dim, kv, kv],
            core: KeyValue::new(sizes, scope, shared)?,
        })
    }
}

struct Module {
    qkv: Param,
    /// Columns of queries, keys and values.
    widths: [usize; 3],
    core: KeyValue,
}

impl Module {
    /// Queries, keys and values of `x`.
    fn project(&self, tape: &mut Tape, x: &Var) -> [Var; 3] {
        let qkv = tape.linear(x, &self.qkv);
        tape.split(qkv, self.widths)
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
