//! Tensor product attention (arXiv 2501.06425, section 3): per token, queries, keys and values are means over ranks of
//! outer products of a factor over heads (a) and a factor over channels (b). Rotation applies to the rows of b.
//!
//! Cache: `a_k`, `b_k`, `a_v`, `b_v`; keys and values are never formed when decoding.

use super::{Attention, CachedAttention, Design, Scale, Shared, scores};
use crate::{
    error::{ConfigError, WeightError, positive},
    placement::CacheStep,
    position::{self, Position, Rotary},
    sequences::Sequences,
    tape::{AttentionArgs, HeadVar, Tape, Var},
    weights::{Declarations, Param, Projection, Scope},
};
use keyfold_core::{CacheLayout, Capacity, Cost, Plane};
use keyfold_ops::{
    attention::{self, Heads, TpaCached},
    rope::{self, Heads as RopeHeads, RopeTable},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Tensor product attention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TpaConfig {
    /// Heads m of queries, keys and values.
    pub heads: usize,
    /// Head width d.
    pub head_dim: usize,
    /// Rank R_Q of queries.
    #[serde(default = "query_rank")]
    pub query_rank: usize,
    /// Rank R_K of keys.
    #[serde(default = "kv_rank")]
    pub key_rank: usize,
    /// Rank R_V of values.
    #[serde(default = "kv_rank")]
    pub value_rank: usize,
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

fn query_rank() -> usize {
    6
}

fn kv_rank() -> usize {
    2
}

impl TpaConfig {
    fn ranks(&self) -> usize {
        self.query_rank + self.key_rank + self.value_rank
    }

    fn module(&self, scope: &Scope<'_>, shared: &Shared) -> Result<Module, WeightError> {
        Ok(Module {
            factors: scope.project(&FACTORS)?,
            o_proj: scope.get("o_proj.weight")?,
            sizes: self.clone(),
            rope: shared.rope.get(Rotary::plain(self.position, self.rope_theta), self.head_dim),
            args: scores(self.softmax_scale, self.head_dim, self.position, self.heads),
        })
    }

    /// Widths of the factors, in the order of [`FACTORS`].
    fn widths(&self) -> [usize; 6] {
        let (m, d) = (self.heads, self.head_dim);
        let (q, k, v) = (self.query_rank, self.key_rank, self.value_rank);
        [q * m, q * d, k * m, k * d, v * m, v * d]
    }
}

/// Most multiplications to form a token's queries, keys and values.
const MAX_PRODUCTS: usize = 1 << 44;

const FACTORS: [&str; 6] = [
    "a_q_proj.weight",
    "b_q_proj.weight",
    "a_k_proj.weight",
    "b_k_proj.weight",
    "a_v_proj.weight",
    "b_v_proj.weight",
];

impl Design for TpaConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        positive("heads", self.heads)?;
        positive("head_dim", self.head_dim)?;
        positive("query_rank", self.query_rank)?;
        positive("key_rank", self.key_rank)?;
        positive("value_rank", self.value_rank)?;
        // No weight has this size, so that declaring them bounds everything but it.
        let products = self.ranks().checked_mul(self.heads).and_then(|n| n.checked_mul(self.head_dim + 1));
        if products.is_none_or(|products| products > MAX_PRODUCTS) {
            return Err(ConfigError::Overflow {
                what: "tensor products of ranks, heads and head_dim".into(),
            });
        }
        Rotary::plain(self.position, self.rope_theta).validate(self.head_dim, "head_dim")?;
        position::validate_scale(self.softmax_scale)
    }

    fn declare(&self, hidden: usize, layers: usize, list: &mut Declarations) -> Result<(), ConfigError> {
        for (name, width) in FACTORS.into_iter().zip(self.widths()) {
            list.matrix(name, width, hidden)?;
        }
        list.output("o_proj.weight", hidden, self.heads * self.head_dim, layers)
    }

    fn cache_layout(&self) -> Result<CacheLayout, ConfigError> {
        let [_, _, a_k, b_k, a_v, b_v] = self.widths();
        Ok(CacheLayout::new([
            Plane { name: "a_k", width: a_k },
            Plane { name: "b_k", width: b_k },
            Plane { name: "a_v", width: a_v },
            Plane { name: "b_v", width: b_v },
        ])?)
    }

    fn pieces(&self, plane: usize) -> usize {
        if plane < 2 { self.key_rank } else { self.value_rank }
    }

    fn holds_8_bits(&self) -> bool {
        false
    }

    /// The paper of MFA does not rate TPA: heads of rank d that read from R_K rows of width d.
    fn capacity(&self) -> Capacity {
        let shared_latent_dim = self.key_rank * self.head_dim;
        Capacity { heads: self.heads, rank_per_head: self.head_dim, shared_latent_dim }
    }

    fn cost(&self, hidden: usize) -> Cost {
        let (m, d) = (self.heads, self.head_dim);
        let kv_ranks = self.key_rank + self.value_rank;
        let query = 2 * self.query_rank * m * d;
        Cost {
            linear_flops: (2 * hidden * (self.ranks() * (m + d) + m * d) + query) as u64,
            flops_per_context_token: 2 * (kv_ranks * m * (d + 1)) as u64,
            elements_per_context_token: (kv_ranks * (m + d)) as u64,
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
            heads: scale.heads(),
            head_dim: scale.head_dim,
            query_rank: query_rank(),
            key_rank: kv_rank(),
            value_rank: kv_rank(),
            position: scale.position,
            rope_theta: scale.rope_theta,
            softmax_scale: None,
        }
    }

    fn training(&self, scope: &Scope<'_>, shared: &Shared) -> Result<Box<dyn Attention>, WeightError> {
        Ok(Box::new(self.module(scope, shared)?))
    }

    fn decoding(&self, scope: &Scope<'_>, shared: &Shared) -> Result<Box<dyn CachedAttention>, WeightError> {
        Ok(Box::new(self.module(scope, shared)?))
    }
}

struct Module {
    factors: Projection,
    o_proj: Param,
    sizes: TpaConfig,
    rope: Option<Arc<RopeTable>>,
    args: AttentionArgs,
}

impl Module {
    fn project(&self, tape: &mut Tape, x: &Var) -> [Var; 6] {
        let factors = tape.project(x, &self.factors);
        tape.split(factors, self.sizes.widths())
    }
}

impl Attention for Module {
    fn forward(&self, tape: &mut Tape, x: &Var, sequences: &Sequences) -> Var {
        let sizes = &self.sizes;
        let [a_q, b_q, a_k, b_k, a_v, b_v] = self.project(tape, x);
        if let Some(rope) = &self.rope {
            for (b, rank) in [(&b_q, sizes.query_rank), (&b_k, sizes.key_rank)] {
                tape.rope_in_place(b, RopeHeads::adjacent(rank, sizes.head_dim), rope, sequences);
            }
        }
        let q = tape.tpa(&a_q, &b_q, sizes.heads, sizes.query_rank);
        let k = tape.tpa(&a_k, &b_k, sizes.heads, sizes.key_rank);
        let v = tape.tpa(&a_v, &b_v, sizes.heads, sizes.value_rank);
        let [q, k, v] = [&q, &k, &v].map(|var| HeadVar::packed(var, sizes.heads));
        let mixed = tape.attention(q, k, v, &self.args, sequences);
        tape.linear(&mixed, &self.o_proj)
    }
}

impl CachedAttention for Module {
    fn forward(&self, tape: &mut Tape, x: &Var, step: &CacheStep<'_>) -> Var {
        let sizes = &self.sizes;
        let [a_q, b_q, a_k, b_k, a_v, b_v] = self.project(tape, x);
        if let Some(rope) = &self.rope {
            for (b, rank) in [(&b_q, sizes.query_rank), (&b_k, sizes.key_rank)] {
                let heads = RopeHeads::adjacent(rank, sizes.head_dim);
                rope::apply(&mut b.value().clone(), heads, rope, step.positions(), false);
            }
        }
        for (plane, values) in [a_k, b_k, a_v, b_v].iter().enumerate() {
            step.write(plane, values.value());
        }
        let q = tape.tpa(&a_q, &b_q, sizes.heads, sizes.query_rank);
        let mixed = tape.activations(step.new_tokens(), sizes.heads * sizes.head_dim);
        let planes = [0, 1, 2, 3].map(|plane| step.pieces(plane));
        let [a_k, b_k, a_v, b_v] = [0, 1, 2, 3].map(|plane: usize| {
            let (tensor, stride) = &planes[plane];
            let width = if plane.is_multiple_of(2) { sizes.heads } else { sizes.head_dim };
            Heads { tensor, count: sizes.pieces(plane), width, stride: *stride }
        });
        let cached = TpaCached {
            a_k,
            b_k,
            a_v,
            b_v,
            paged: step.paged(),
            scale: self.args.scale,
            alibi: self.args.alibi.as_deref(),
        };
        let q = Heads::packed(q.value(), sizes.heads);
        attention::tpa_cached(q, &cached, Heads::packed(&mixed, sizes.heads));
        let mixed = tape.leaf(mixed);
        tape.linear_later(&mixed, &self.o_proj)
    }
}
