//! Attention designs. One file a design: configuration, validation, declared weights, the form that trains, the form
//! that decodes from a cache, cache layout, capacity and cost. One line in `designs!` makes it known everywhere.
//!
//! Shapes: T tokens, H hidden, m query heads, g key/value heads, d head width, C shared key/value width, r query rank.

mod grouped;
mod key_value;
mod mfa;
mod mfa_kr;
mod mla;
mod query;
mod tpa;

pub use grouped::{GqaConfig, Grouped, MhaConfig, MqaConfig};
pub use mfa::MfaConfig;
pub use mfa_kr::{MfaKrConfig, Reuse, ReuseFrom};
pub use mla::MlaConfig;
pub use tpa::TpaConfig;

use crate::{
    config::LocalConfig,
    error::{ConfigError, WeightError},
    placement::CacheStep,
    position::{self, Position, RopeTables},
    sequences::Sequences,
    tape::{AttentionArgs, Tape, Var},
    weights::{Declarations, Scope},
};
use keyfold_core::{CacheLayout, Capacity, Cost, DType};
use keyfold_ops::cast;
use keyfold_tensor::{Arena, Tensor};
use serde::{Deserialize, Serialize};

/// What is known of an attention design without its weights, and how its modules are made.
pub trait Design {
    /// Fails with the key's name when the sizes make no attention.
    fn validate(&self) -> Result<(), ConfigError>;

    /// Declares the weights of one layer of a model with `layers` layers of width `hidden`.
    fn declare(&self, hidden: usize, layers: usize, list: &mut Declarations) -> Result<(), ConfigError>;

    /// What one layer stores per token.
    fn cache_layout(&self) -> Result<CacheLayout, ConfigError>;

    /// Equal pieces of plane `plane` that attention reads one by one.
    fn pieces(&self, _plane: usize) -> usize {
        1
    }

    /// Whether attention can read planes in 8 bits.
    fn holds_8_bits(&self) -> bool {
        true
    }

    /// Capacity of one layer (arXiv 2412.19255, table 1).
    fn capacity(&self) -> Capacity;

    /// Work of decoding one token in one layer.
    fn cost(&self, hidden: usize) -> Cost;

    /// Query heads.
    fn heads(&self) -> usize;

    /// The same design with another number of query heads.
    #[must_use]
    fn with_heads(&self, heads: usize) -> Self
    where
        Self: Sized;

    /// The same design where tokens see a window only; `None` if it has no such form.
    fn windowed(&self, _local: &LocalConfig) -> Option<Self>
    where
        Self: Sized,
    {
        None
    }

    /// A sensible member of this design for a model of `scale`, as a comparison takes it.
    fn preset(scale: &Scale) -> Self
    where
        Self: Sized;

    /// The module that trains.
    fn training(&self, scope: &Scope<'_>, shared: &Shared) -> Result<Box<dyn Attention>, WeightError>;

    /// The module that decodes from a cache.
    fn decoding(&self, scope: &Scope<'_>, shared: &Shared) -> Result<Box<dyn CachedAttention>, WeightError>;
}

/// What the layers of a model share.
#[derive(Debug)]
pub struct Shared {
    /// Rotary tables.
    pub rope: RopeTables,
    /// Epsilon of the model's norms.
    pub rms_norm_eps: f32,
}

/// How scores are scaled (by width^-0.5 unless `scale` says otherwise) and biased.
fn scores(scale: Option<f64>, width: usize, position: Position, heads: usize) -> AttentionArgs {
    AttentionArgs {
        scale: scale.unwrap_or((width as f64).powf(-0.5)) as f32,
        alibi: position::slopes(position, heads),
        window: None,
    }
}

/// A weight that was computed on the host, as decoding beside `like` reads it: f32 on the host, bf16 on a GPU.
fn computed(weight: Tensor, like: &Tensor) -> Tensor {
    if weight.device() == like.device() {
        return weight;
    }
    let arena = Arena::beside(like);
    let wide = weight.copied_to(&arena);
    let mut placed = arena.tensor(wide.rows(), wide.cols(), DType::Bf16);
    cast::copy(&wide, &mut placed);
    placed
}

/// Self-attention over whole sequences.
pub trait Attention: Send + Sync {
    /// `x` [T, H], normalised: the update of the residual stream [T, H].
    fn forward(&self, tape: &mut Tape, x: &Var, sequences: &Sequences) -> Var;
}

/// Self-attention of new tokens over the cache of their own sequence.
pub trait CachedAttention: Send + Sync {
    /// `x` [new tokens, H], normalised: writes their rows into the cache and gives the update [new tokens, H].
    fn forward(&self, tape: &mut Tape, x: &Var, step: &CacheStep<'_>) -> Var;
}

/// The size of model that a preset is for.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of a conventional head.
    pub head_dim: usize,
    /// Position information.
    pub position: Position,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
}

impl Scale {
    /// A model of these widths with plain rotary positions.
    pub fn new(hidden: usize, head_dim: usize) -> Self {
        Self { hidden, head_dim, position: Position::Rope, rope_theta: position::ROPE_THETA }
    }

    /// Query heads of multi-head attention.
    pub fn heads(&self) -> usize {
        (self.hidden / self.head_dim).max(1)
    }

    /// The shared width C of MFA: an eighth of the hidden width, the ratio of arXiv 2412.19255 (256 of 2048), even.
    pub fn shared_width(&self) -> usize {
        (self.hidden / 8).max(2).next_multiple_of(2)
    }
}

macro_rules! designs {
    ($($variant:ident($config:ty) = $name:literal, $summary:literal;)+) => {
        /// `[model.attention]`: `kind` and the keys of that design.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "kind")]
        pub enum AttentionConfig {
            $(
                #[doc = $summary]
                #[serde(rename = $name)]
                $variant($config),
            )+
        }

        /// Every attention kind with a line on what it is, in the order of tables and plots.
        pub const DESIGNS: &[(&str, &str)] = &[$(($name, $summary)),+];

        impl AttentionConfig {
            /// The configuration's `kind`.
            pub fn kind(&self) -> &'static str {
                match self { $(Self::$variant(_) => $name),+ }
            }

            /// The preset of `kind` for a model of `scale`; `None` for an unknown kind.
            pub fn preset(kind: &str, scale: &Scale) -> Option<Self> {
                match kind {
                    $($name => Some(Self::$variant(<$config>::preset(scale))),)+
                    _ => None,
                }
            }

            /// The same design with another number of query heads.
            #[must_use]
            pub fn with_heads(&self, heads: usize) -> Self {
                match self { $(Self::$variant(config) => Self::$variant(config.with_heads(heads))),+ }
            }

            /// The same design where tokens see a window only; `None` if it has no such form.
            pub fn windowed(&self, local: &LocalConfig) -> Option<Self> {
                match self { $(Self::$variant(config) => config.windowed(local).map(Self::$variant)),+ }
            }

            /// What every design answers.
            pub fn design(&self) -> &dyn Design {
                match self { $(Self::$variant(config) => config),+ }
            }
        }
    };
}

designs! {
    Mha(MhaConfig) = "mha", "multi-head attention: a key and a value for every query head";
    Mqa(MqaConfig) = "mqa", "multi-query attention: one key and one value for all query heads";
    Gqa(GqaConfig) = "gqa", "grouped-query attention: a key and a value for each group of query heads";
    Mla(MlaConfig) = "mla", "multi-head latent attention: keys and values from one cached latent and a shared rope key";
    Mfa(MfaConfig) = "mfa", "multi-matrix factorization attention: one wide key and value, many low-rank query heads";
    MfaKr(MfaKrConfig) = "mfa-kr", "MFA with key reuse: the cached key is also the value, through a gated map";
    Tpa(TpaConfig) = "tpa", "tensor product attention: queries, keys and values as sums of products of factors";
}

#[cfg(test)]
mod tests;
