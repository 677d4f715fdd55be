//! Multi-head, multi-query and grouped-query attention: one design with m query heads on g key/value heads,
//! under three names (arXiv 1706.03762, 1911.02150, 2305.13245).
//!
//! Cache: `k` and `v`, g * d values each.

use super::{
    Attention, AttentionConfig, CachedAttention, Design, Scale, Shared,
    key_value::{KeyValue, KeyValueSizes},
};
use crate::{
    config::LocalConfig,
    error::{ConfigError, WeightError, positive},
    placement::CacheStep,
    position::{self, Position, RopeScaling, Rotary},
    sequences::Sequences,
    tape::{Tape, Var},
    weights::{Declarations, Init, Projection, Scope},
};
use keyfold_core::{CacheLayout, Capacity, Cost, Plane};
use serde::{Deserialize, Serialize};

/// A configuration of the family: what the three have in common, and keys of its own.
macro_rules! grouped_config {
    ($(#[$doc:meta])* $config:ident { $(#[$heads_doc:meta])* heads, $($(#[$own_doc:meta])* $own:ident,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $config {
            $(#[$heads_doc])*
            pub heads: usize,
            $($(#[$own_doc])* pub $own: usize,)?
            /// Head width d.
            pub head_dim: usize,
            /// Whether queries, keys and values have biases (Qwen2).
            #[serde(default, skip_serializing_if = "std::ops::Not::not")]
            pub qkv_bias: bool,
            /// Whether each head's queries and keys are normalised before the rotation (Qwen3, Gemma 3).
            #[serde(default, skip_serializing_if = "std::ops::Not::not")]
            pub qk_norm: bool,
            /// Position information.
            #[serde(default)]
            pub position: Position,
            /// Base of the rotary frequencies.
            #[serde(default = "position::default_theta")]
            pub rope_theta: f64,
            /// How the rotary frequencies were changed for longer sequences.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub rope_scaling: Option<RopeScaling>,
            /// Factor on scores; d^-0.5 by default.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub softmax_scale: Option<f64>,
            /// Tokens that a token sees, itself included; all before it by default.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub window: Option<usize>,
        }
    };
}

grouped_config! {
    /// Multi-head attention.
    MhaConfig {
        /// Query heads m, each with its own key and value.
        heads,
    }
}
grouped_config! {
    /// Multi-query attention.
    MqaConfig {
        /// Query heads m on one key and value.
        heads,
    }
}
grouped_config! {
    /// Grouped-query attention.
    GqaConfig {
        /// Query heads m, a multiple of `kv_heads`.
        heads,
        /// Key/value heads g.
        kv_heads,
    }
}

/// The design behind the three names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grouped {
    /// Query heads m.
    pub heads: usize,
    /// Key/value heads g.
    pub kv_heads: usize,
    /// Head width d.
    pub head_dim: usize,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether queries and keys are normalised per head.
    pub qk_norm: bool,
    /// Position information.
    pub position: Position,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies were changed.
    pub rope_scaling: Option<RopeScaling>,
    /// Factor on scores.
    pub softmax_scale: Option<f64>,
    /// Tokens that a token sees.
    pub window: Option<usize>,
}

/// Makes a configuration a [`Design`] by way of [`Grouped`].
macro_rules! grouped_design {
    ($config:ident, |$this:ident| $kv_heads:expr, |$heads:ident, $old:ident| $with:expr, |$scale:ident| $preset:expr) => {
        impl $config {
            /// The design, whatever its name.
            pub fn grouped(&self) -> Grouped {
                let $this = self;
                Grouped {
                    heads: self.heads,
                    kv_heads: $kv_heads,
                    head_dim: self.head_dim,
                    qkv_bias: self.qkv_bias,
                    qk_norm: self.qk_norm,
                    position: self.position,
                    rope_theta: self.rope_theta,
                    rope_scaling: self.rope_scaling,
                    softmax_scale: self.softmax_scale,
                    window: self.window,
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
            fn windowed(&self, local: &LocalConfig) -> Option<Self> {
                let rope_theta = local.rope_theta.unwrap_or(self.rope_theta);
                let rope_scaling = self.rope_scaling.filter(|_| local.rope_theta.is_none());
                Some(Self { window: Some(local.window), rope_theta, rope_scaling, ..self.clone() })
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
    qkv_bias: false,
    qk_norm: false,
    position: scale.position,
    rope_theta: scale.rope_theta,
    rope_scaling: None,
    softmax_scale: None,
    window: None,
});
grouped_design!(MqaConfig, |_config| 1, |heads, old| Self { heads, ..old }, |scale| Self {
    heads: scale.heads(),
    head_dim: scale.head_dim,
    qkv_bias: false,
    qk_norm: false,
    position: scale.position,
    rope_theta: scale.rope_theta,
    rope_scaling: None,
    softmax_scale: None,
    window: None,
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
            qkv_bias: false,
            qk_norm: false,
            position: scale.position,
            rope_theta: scale.rope_theta,
            rope_scaling: None,
            softmax_scale: None,
            window: None,
        }
    }
);

impl Grouped {
    /// The configuration under the narrowest of the three names.
    pub fn config(self) -> AttentionConfig {
        macro_rules! config {
            ($config:ident { $($own:ident)? }) => {
                $config {
                    heads: self.heads,
                    $($own: self.$own,)?
                    head_dim: self.head_dim,
                    qkv_bias: self.qkv_bias,
                    qk_norm: self.qk_norm,
                    position: self.position,
                    rope_theta: self.rope_theta,
                    rope_scaling: self.rope_scaling,
                    softmax_scale: self.softmax_scale,
                    window: self.window,
                }
            };
        }
        match self.kv_heads {
            kv_heads if kv_heads == self.heads => AttentionConfig::Mha(config!(MhaConfig {})),
            1 => AttentionConfig::Mqa(config!(MqaConfig {})),
            _ => AttentionConfig::Gqa(config!(GqaConfig { kv_heads })),
        }
    }

    fn rotary(&self) -> Rotary {
        Rotary { scaling: self.rope_scaling, ..Rotary::plain(self.position, self.rope_theta) }
    }

    fn validate(&self) -> Result<(), ConfigError> {
        positive("heads", self.heads)?;
        positive("kv_heads", self.kv_heads)?;
        positive("head_dim", self.head_dim)?;
        positive("window", self.window.unwrap_or(1))?;
        if !self.heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a divisor of heads = {}", self.heads);
            return Err(ConfigError::value("kv_heads", expected, self.kv_heads));
        }
        self.rotary().validate(self.head_dim, "head_dim")?;
        position::validate_scale(self.softmax_scale)
    }

    /// Outputs of the projections to queries, keys and values.
    fn widths(&self) -> [usize; 3] {
        [self.heads, self.kv_heads, self.kv_heads].map(|heads| heads * self.head_dim)
    }

    fn declare(&self, hidden: usize, layers: usize, list: &mut Declarations) -> Result<(), ConfigError> {
        for (name, width) in WEIGHTS.into_iter().zip(self.widths()) {
            list.matrix(name, width, hidden)?;
        }
        if self.qkv_bias {
            for (name, width) in BIASES.into_iter().zip(self.widths()) {
                list.vector(name, width, Init::Zeros)?;
            }
        }
        if self.qk_norm {
            list.vector("q_norm.weight", self.head_dim, Init::Ones)?;
            list.vector("k_norm.weight", self.head_dim, Init::Ones)?;
        }
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
            rotary: self.rotary(),
            softmax_scale: self.softmax_scale,
            window: self.window,
            qk_norm: self.qk_norm,
        };
        let qkv =
            if self.qkv_bias { scope.project_biased(&WEIGHTS, &BIASES)? } else { scope.project(&WEIGHTS)? };
        Ok(Module { qkv, widths: self.widths(), core: KeyValue::new(sizes, scope, shared)? })
    }
}

const WEIGHTS: [&str; 3] = ["q_proj.weight", "k_proj.weight", "v_proj.weight"];
const BIASES: [&str; 3] = ["q_proj.bias", "k_proj.bias", "v_proj.bias"];

struct Module {
    qkv: Projection,
    /// Columns of queries, keys and values.
    widths: [usize; 3],
    core: KeyValue,
}

impl Module {
    /// Queries, keys and values of `x`.
    fn project(&self, tape: &mut Tape, x: &Var) -> [Var; 3] {
        let qkv = tape.project(x, &self.qkv);
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
