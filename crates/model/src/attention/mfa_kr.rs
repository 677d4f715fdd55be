//! MFA with key reuse (arXiv 2412.19255, section 3.3): the key is the only thing cached and is also the value, through
//! a map M of width C: v = M k.
//!
//! Cache: `k`, C values. Because M is linear it moves behind the weighted sum, and decoding folds it into the output
//! projection of every head (O_c M): values are never formed.

use super::{
    Attention, CachedAttention, Design, Scale, Shared, computed,
    mfa::yes,
    query::{Query, QuerySizes},
    scores,
};
use crate::{
    error::{ConfigError, WeightError, positive},
    placement::CacheStep,
    position::{self, Position, Rotary},
    sequences::Sequences,
    tape::{AttentionArgs, HeadVar, Tape, Var},
    weights::{Declarations, Init, Param, Projection, Scope},
};
use keyfold_core::{CacheLayout, Capacity, Cost, DType, Plane};
use keyfold_ops::{
    attention::{self, Cached, Heads},
    linear,
    rope::{self, Heads as RopeHeads, RopeTable},
};
use keyfold_tensor::{Arena, Tensor};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How the value is made of the key (the rows of the paper's ablation).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reuse {
    /// v = k.
    Vanilla,
    /// v = N k.
    Projection,
    /// v = k + N k.
    Residual,
    /// v = k + a * (N k), a starting at 0: the paper's MFA-KR.
    #[default]
    Gated,
}

/// Which key the value is made of, and which is cached, when positions are rotary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReuseFrom {
    /// The unrotated key is cached and rotated when read; the value comes from the unrotated key.
    #[default]
    PreRope,
    /// The rotated key is cached and the value comes from it.
    PostRope,
    /// The rotated key is cached, and what a head reads is rotated back by the query's own position before M, so that
    /// values depend on relative positions.
    Relative,
}

/// MFA with key reuse.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MfaKrConfig {
    /// Query heads m.
    pub heads: usize,
    /// Width C of the shared key and of each query head.
    pub head_dim: usize,
    /// Rank r of the query factorisation; C by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_rank: Option<usize>,
    /// Whether the latent query is normalised.
    #[serde(default = "yes")]
    pub query_norm: bool,
    /// How the value is made of the key.
    #[serde(default)]
    pub reuse: Reuse,
    /// Which key it is made of; `pre_rope` unless positions are rotary.
    #[serde(default)]
    pub reuse_from: ReuseFrom,
    /// Position information.
    #[serde(default)]
    pub position: Position,
    /// Base of the rotary frequencies.
    #[serde(default = "position::default_theta")]
    pub rope_theta: f64,
    /// Factor on scores; C^-0.5 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub softmax_scale: Option<f64>,
}

impl MfaKrConfig {
    /// Rank r of the query factorisation.
    pub fn rank(&self) -> usize {
        self.query_rank.unwrap_or(self.head_dim)
    }

    fn query(&self) -> QuerySizes {
        QuerySizes { heads: self.heads, head_dim: self.head_dim, rank: self.rank(), norm: self.query_norm }
    }

    fn module(&self, scope: &Scope<'_>, shared: &Shared) -> Result<Module, WeightError> {
        let matrix = if self.reuse == Reuse::Vanilla { None } else { Some(scope.get("value_proj.weight")?) };
        let gate = if self.reuse == Reuse::Gated { Some(scope.get("value_gate")?) } else { None };
        Ok(Module {
            down: scope.project(&["q_proj.weight", "k_proj.weight"])?,
            query: Query::new(self.query(), scope, shared)?,
            map: ValueMap { reuse: self.reuse, matrix, gate },
            o_proj: scope.get("o_proj.weight")?,
            heads: self.heads,
            width: self.head_dim,
            rank: self.rank(),
            reuse_from: self.reuse_from,
            rope: shared.rope.get(Rotary::plain(self.position, self.rope_theta), self.head_dim),
            args: scores(self.softmax_scale, self.head_dim, self.position, self.heads),
        })
    }
}

impl Design for MfaKrConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        positive("heads", self.heads)?;
        positive("head_dim", self.head_dim)?;
        positive("query_rank", self.rank())?;
        if self.position != Position::Rope && self.reuse_from != ReuseFrom::PreRope {
            let found = if self.reuse_from == ReuseFrom::PostRope { "post_rope" } else { "relative" };
            return Err(ConfigError::value(
                "reuse_from",
                "pre_rope: keys are not rotated without rope",
                found,
            ));
        }
        Rotary::plain(self.position, self.rope_theta).validate(self.head_dim, "head_dim")?;
        position::validate_scale(self.softmax_scale)
    }

    fn declare(&self, hidden: usize, layers: usize, list: &mut Declarations) -> Result<(), ConfigError> {
        list.matrix("q_proj.weight", self.rank(), hidden)?;
        list.matrix("k_proj.weight", self.head_dim, hidden)?;
        self.query().declare(list)?;
        if self.reuse != Reuse::Vanilla {
            list.matrix("value_proj.weight", self.head_dim, self.head_dim)?;
        }
        if self.reuse == Reuse::Gated {
            list.vector("value_gate", self.head_dim, Init::Zeros)?;
        }
        list.output("o_proj.weight", hidden, self.heads * self.head_dim, layers)
    }

    fn cache_layout(&self) -> Result<CacheLayout, ConfigError> {
        Ok(CacheLayout::new([Plane { name: "k", width: self.head_dim }])?)
    }

    fn capacity(&self) -> Capacity {
        let rank_per_head = self.rank().min(self.head_dim);
        Capacity { heads: self.heads, rank_per_head, shared_latent_dim: self.head_dim }
    }

    fn cost(&self, hidden: usize) -> Cost {
        let mixed = self.heads * self.head_dim;
        let rotates_on_read = self.position == Position::Rope && self.reuse_from == ReuseFrom::PreRope;
        let rotation = if rotates_on_read { 3 * self.head_dim } else { 0 };
        Cost {
            linear_flops: self.query().flops(hidden) + 2 * (hidden * (self.head_dim + mixed)) as u64,
            flops_per_context_token: (4 * mixed + rotation) as u64,
            elements_per_context_token: self.head_dim as u64,
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
            reuse: Reuse::Gated,
            reuse_from: ReuseFrom::PreRope,
            position: scale.position,
            rope_theta: scale.rope_theta,
            softmax_scale: None,
        }
    }

    fn training(&self, scope: &Scope<'_>, shared: &Shared) -> Result<Box<dyn Attention>, WeightError> {
        Ok(Box::new(self.module(scope, shared)?))
    }

    fn decoding(&self, scope: &Scope<'_>, shared: &Shared) -> Result<Box<dyn CachedAttention>, WeightError> {
        let mut module = self.module(scope, shared)?;
        let folded = module.map.fold(&module.o_proj.value, self.heads);
        module.o_proj = Param { value: computed(folded, &module.o_proj.value), grad: None };
        Ok(Box::new(Decoding(module)))
    }
}

/// The map M from keys to values.
struct ValueMap {
    reuse: Reuse,
    matrix: Option<Param>,
    gate: Option<Param>,
}

impl ValueMap {
    /// M applied to rows of width C.
    fn forward(&self, tape: &mut Tape, k: &Var) -> Var {
        let Some(matrix) = &self.matrix else { return k.clone() };
        let n = tape.linear(k, matrix);
        if self.reuse == Reuse::Projection { n } else { tape.value_map(k, &n, self.gate.as_ref()) }
    }

    /// `o_proj` [H, m * C] with M applied to each head's columns: O_c M, in the host's memory.
    fn fold(&self, o_proj: &Tensor, heads: usize) -> Tensor {
        let Some(matrix) = &self.matrix else { return o_proj.clone() };
        let arena = Arena::new();
        let wide = |tensor: &Tensor| arena.tensor_of(tensor.rows(), tensor.cols(), &tensor.to_vec());
        let width = matrix.value.rows();
        let mut map = matrix.value.to_vec();
        if let Some(gate) = &self.gate {
            for (row, a) in map.chunks_exact_mut(width).zip(gate.value.to_vec()) {
                row.iter_mut().for_each(|n| *n *= a);
            }
        }
        if self.reuse != Reuse::Projection {
            map.iter_mut().step_by(width + 1).for_each(|diagonal| *diagonal += 1.0);
        }
        let map = arena.tensor_of(width, width, &map);
        let o_proj = wide(o_proj);
        let folded = arena.tensor(o_proj.rows(), o_proj.cols(), DType::F32);
        for head in 0..heads {
            let mut out = folded.columns(head * width, width);
            linear::backward_input(&o_proj.columns(head * width, width), &map, &mut out, false);
        }
        folded
    }
}

struct Module {
    down: Projection,
    query: Query,
    map: ValueMap,
    o_proj: Param,
    heads: usize,
    width: usize,
    rank: usize,
    reuse_from: ReuseFrom,
    rope: Option<Arc<RopeTable>>,
    args: AttentionArgs,
}

impl Module {
    /// Queries [T, m * C] and keys [T, C] of `x`.
    fn project(&self, tape: &mut Tape, x: &Var) -> [Var; 2] {
        let down = tape.project(x, &self.down);
        let [latent, k] = tape.split(down, [self.rank, self.width]);
        [self.query.forward(tape, &latent), k]
    }
}

impl Attention for Module {
    fn forward(&self, tape: &mut Tape, x: &Var, sequences: &Sequences) -> Var {
        let [q, base] = self.project(tape, x);
        let key_heads = RopeHeads::adjacent(1, self.width);
        // The key that scores use, beside `base`, which becomes the one that the value is made of.
        let key = match &self.rope {
            None => base.clone(),
            Some(rope) => {
                tape.rope_in_place(&q, RopeHeads::adjacent(self.heads, self.width), rope, sequences);
                if self.reuse_from == ReuseFrom::PreRope {
                    tape.rope(&base, key_heads, rope, sequences, false)
                } else {
                    tape.rope_in_place(&base, key_heads, rope, sequences);
                    base.clone()
                }
            }
        };
        let (q, k) = (HeadVar::packed(&q, self.heads), HeadVar::packed(&key, 1));
        let mixed = match &self.rope {
            Some(rope) if self.reuse_from == ReuseFrom::Relative => {
                let read = tape.attention(q, k, HeadVar::packed(&base, 1), &self.args, sequences);
                let heads = RopeHeads::adjacent(self.heads, self.width);
                let back = tape.rope(&read, heads, rope, sequences, true);
                let rows = tape.reshape(&back, sequences.tokens() * self.heads, self.width);
                let mapped = self.map.forward(tape, &rows);
                tape.reshape(&mapped, sequences.tokens(), self.heads * self.width)
            }
            _ => {
                let v = self.map.forward(tape, &base);
                tape.attention(q, k, HeadVar::packed(&v, 1), &self.args, sequences)
            }
        };
        tape.linear(&mixed, &self.o_proj)
    }
}

/// The module with M folded into `o_proj`.
struct Decoding(Module);

impl CachedAttention for Decoding {
    fn forward(&self, tape: &mut Tape, x: &Var, step: &CacheStep<'_>) -> Var {
        let module = &self.0;
        let (heads, width) = (module.heads, module.width);
        let [q, k] = module.project(tape, x).map(|var| var.value().clone());
        let raw_keys = module.reuse_from == ReuseFrom::PreRope;
        step.append(Heads::packed(&q, heads), Heads::packed(&k, 1), None, module.rope.as_deref(), raw_keys);
        let mut mixed = tape.activations(step.new_tokens(), heads * width);
        let keys = step.planes(0, 1);
        let cached = Cached {
            k: Heads::packed(&keys, 1),
            v: Heads::packed(&keys, 1),
            paged: step.paged(),
            scales: step.scales(),
            scale: module.args.scale,
            alibi: module.args.alibi.as_deref(),
            window: None,
            rotate: module.rope.as_deref().filter(|_| raw_keys),
        };
        attention::cached(Heads::packed(&q, heads), &cached, Heads::packed(&mixed, heads));
        if let Some(rope) = module.rope.as_ref().filter(|_| module.reuse_from == ReuseFrom::Relative) {
            rope::apply(&mut mixed, RopeHeads::adjacent(heads, width), rope, step.positions(), true);
        }
        let mixed = tape.leaf(mixed);
        tape.linear_later(&mixed, &module.o_proj)
    }
}
