//! What MHA, MQA, GQA and MFA share: query heads over keys and values of one width, which are cached as they are, and
//! the output projection.

use super::{Shared, scores};
use crate::{
    error::WeightError,
    placement::CacheStep,
    position::Rotary,
    sequences::Sequences,
    tape::{AttentionArgs, HeadVar, Tape, Var},
    weights::{Param, Scope},
};
use keyfold_ops::{
    attention::{self, Cached, Heads},
    rope::{Heads as RopeHeads, RopeTable},
};
use std::sync::Arc;

/// Sizes and positions of an attention over cached keys and values.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyValueSizes {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) width: usize,
    pub(super) rotary: Rotary,
    pub(super) softmax_scale: Option<f64>,
    /// Tokens that a token sees.
    pub(super) window: Option<usize>,
    /// Whether each head's queries and keys are normalised.
    pub(super) qk_norm: bool,
}

/// The attention behind the projections.
pub(super) struct KeyValue {
    heads: usize,
    kv_heads: usize,
    width: usize,
    norms: Option<[Param; 2]>,
    eps: f32,
    rope: Option<Arc<RopeTable>>,
    args: AttentionArgs,
    o_proj: Param,
}

impl KeyValue {
    pub(super) fn new(sizes: KeyValueSizes, scope: &Scope<'_>, shared: &Shared) -> Result<Self, WeightError> {
        let KeyValueSizes { heads, kv_heads, width, rotary, softmax_scale, window, qk_norm } = sizes;
        let norms = match qk_norm {
            true => Some([scope.get("q_norm.weight")?, scope.get("k_norm.weight")?]),
            false => None,
        };
        Ok(Self {
            heads,
            kv_heads,
            width,
            norms,
            eps: shared.rms_norm_eps,
            rope: shared.rope.get(rotary, width),
            args: AttentionArgs { window, ..scores(softmax_scale, width, rotary.position, heads) },
            o_proj: scope.get("o_proj.weight")?,
        })
    }

    fn normalise(&self, tape: &mut Tape, [q, k, v]: [Var; 3]) -> [Var; 3] {
        match &self.norms {
            None => [q, k, v],
            Some([q_norm, k_norm]) => {
                [tape.rms_norm(&q, q_norm, self.eps), tape.rms_norm(&k, k_norm, self.eps), v]
            }
        }
    }

    /// Whole sequences: queries [T, m * width], keys and values [T, g * width], not yet rotated.
    pub(super) fn train(&self, tape: &mut Tape, qkv: [Var; 3], sequences: &Sequences) -> Var {
        let [q, k, v] = self.normalise(tape, qkv);
        if let Some(rope) = &self.rope {
            tape.rope_in_place(&q, RopeHeads::adjacent(self.heads, self.width), rope, sequences);
            tape.rope_in_place(&k, RopeHeads::adjacent(self.kv_heads, self.width), rope, sequences);
        }
        let [q, k, v] = [(&q, self.heads), (&k, self.kv_heads), (&v, self.kv_heads)]
            .map(|(var, count)| HeadVar::packed(var, count));
        let mixed = tape.attention(q, k, v, &self.args, sequences);
        tape.linear(&mixed, &self.o_proj)
    }

    /// New tokens: their rotated keys and their values go into planes 0 and 1 of the cache.
    pub(super) fn decode(&self, tape: &mut Tape, qkv: [Var; 3], step: &CacheStep<'_>) -> Var {
        let [q, k, v] = self.normalise(tape, qkv).map(|var| var.value().clone());
        let (queries, keys) = (Heads::packed(&q, self.heads), Heads::packed(&k, self.kv_heads));
        step.append(queries, keys, Some(&v), self.rope.as_deref(), false);
        let mixed = tape.activations(step.new_tokens(), self.heads * self.width);
        let (keys, values) = (step.planes(0, 1), step.planes(1, 1));
        let cached = Cached {
            k: Heads::packed(&keys, self.kv_heads),
            v: Heads::packed(&values, self.kv_heads),
            paged: step.paged(),
            scales: step.scales(),
            scale: self.args.scale,
            alibi: self.args.alibi.as_deref(),
            window: self.args.window,
            rotate: None,
        };
        attention::cached(Heads::packed(&q, self.heads), &cached, Heads::packed(&mixed, self.heads));
        let mixed = tape.leaf(mixed);
        tape.linear_later(&mixed, &self.o_proj)
    }
}
