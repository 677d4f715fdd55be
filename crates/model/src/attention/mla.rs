//! Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).
//!
//! Keys and values are made of one cached latent of width r_kv; a rope key of width p is shared by all heads.
//! Training forms keys and values (naive form). Decoding absorbs the key's up projection into the query and applies the
//! value's behind the weighted sum, so that all heads read the cached rows as they lie.
//! Cache: `latent` (r_kv) and `k_rope` (p).

use super::{Attention, CachedAttention, Design, Scale, Shared, computed, mfa::yes, scores};
use crate::{
    error::{ConfigError, WeightError, positive},
    placement::CacheStep,
    position::{self, Position, RopeScaling, Rotary},
    sequences::Sequences,
    tape::{AttentionArgs, HeadVar, Tape, Var},
    weights::{Declarations, Init, Param, Projection, Scope},
};
use keyfold_core::{CacheLayout, Capacity, Cost, Plane};
use keyfold_ops::{
    attention::{self, Cached, Heads},
    cast, linear,
    rope::{self, Heads as RopeHeads, Pairing, RopeTable},
};
use keyfold_tensor::{Arena, Tensor};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Multi-head latent attention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlaConfig {
    /// Query heads m.
    pub heads: usize,
    /// Rank of the query factorisation; none by default: one full projection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub q_lora_rank: Option<usize>,
    /// Width r_kv of the cached latent.
    pub kv_lora_rank: usize,
    /// Channels per head without rotation, n.
    pub qk_nope_head_dim: usize,
    /// Rotated channels per head, p; 0 unless positions are rotary.
    pub qk_rope_head_dim: usize,
    /// Value channels per head, v.
    pub v_head_dim: usize,
    /// Whether the latents are normalised.
    #[serde(default = "yes")]
    pub latent_norm: bool,
    /// Epsilon of the latent norms: DeepSeek's code fixes it, whatever the model's `rms_norm_eps`.
    #[serde(default = "latent_eps")]
    pub latent_norm_eps: f64,
    /// Position information.
    #[serde(default)]
    pub position: Position,
    /// Base of the rotary frequencies.
    #[serde(default = "position::default_theta")]
    pub rope_theta: f64,
    /// How the rotary frequencies were changed for longer sequences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
    /// Whether rotated pairs are neighbours (DeepSeek's checkpoints) instead of halves apart.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rope_interleaved: bool,
    /// Factor on scores; (n + p)^-0.5 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub softmax_scale: Option<f64>,
}

fn latent_eps() -> f64 {
    1e-6
}

impl MlaConfig {
    fn rotary(&self) -> Rotary {
        let pairing = if self.rope_interleaved { Pairing::Interleaved } else { Pairing::HalfSplit };
        Rotary { scaling: self.rope_scaling, pairing, ..Rotary::plain(self.position, self.rope_theta) }
    }

    fn q_width(&self) -> usize {
        self.heads * (self.qk_nope_head_dim + self.qk_rope_head_dim)
    }

    fn kv_width(&self) -> usize {
        self.heads * (self.qk_nope_head_dim + self.v_head_dim)
    }

    fn module(&self, scope: &Scope<'_>, shared: &Shared) -> Result<Module, WeightError> {
        let norm = |name| if self.latent_norm { scope.get(name).map(Some) } else { Ok(None) };
        let (down, q_up) = match self.q_lora_rank {
            Some(_) => {
                let down = scope.project(&["q_a_proj.weight", "kv_a_proj_with_mqa.weight"])?;
                (down, Some((norm("q_a_layernorm.weight")?, scope.get("q_b_proj.weight")?)))
            }
            None => (scope.project(&["q_proj.weight", "kv_a_proj_with_mqa.weight"])?, None),
        };
        let width = self.qk_nope_head_dim + self.qk_rope_head_dim;
        Ok(Module {
            down,
            q_up,
            kv_norm: norm("kv_a_layernorm.weight")?,
            kv_b: scope.get("kv_b_proj.weight")?,
            o_proj: scope.get("o_proj.weight")?,
            sizes: self.clone(),
            rope: shared.rope.get(self.rotary(), self.qk_rope_head_dim),
            args: scores(self.softmax_scale, width, self.position, self.heads),
        })
    }
}

impl Design for MlaConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        positive("heads", self.heads)?;
        positive("q_lora_rank", self.q_lora_rank.unwrap_or(1))?;
        positive("kv_lora_rank", self.kv_lora_rank)?;
        positive("qk_nope_head_dim", self.qk_nope_head_dim)?;
        positive("v_head_dim", self.v_head_dim)?;
        if self.position != Position::Rope && self.qk_rope_head_dim != 0 {
            let found = self.qk_rope_head_dim;
            return Err(ConfigError::value("qk_rope_head_dim", "0 unless position is rope", found));
        }
        if !(self.latent_norm_eps.is_finite() && self.latent_norm_eps > 0.0) {
            return Err(ConfigError::value(
                "latent_norm_eps",
                "a finite number above 0",
                self.latent_norm_eps,
            ));
        }
        self.rotary().validate(self.qk_rope_head_dim, "qk_rope_head_dim")?;
        position::validate_scale(self.softmax_scale)
    }

    fn declare(&self, hidden: usize, layers: usize, list: &mut Declarations) -> Result<(), ConfigError> {
        match self.q_lora_rank {
            Some(rank) => list.matrix("q_a_proj.weight", rank, hidden)?,
            None => list.matrix("q_proj.weight", self.q_width(), hidden)?,
        }
        list.matrix("kv_a_proj_with_mqa.weight", self.kv_lora_rank + self.qk_rope_head_dim, hidden)?;
        if let Some(rank) = self.q_lora_rank {
            if self.latent_norm {
                list.vector("q_a_layernorm.weight", rank, Init::Ones)?;
            }
            list.matrix("q_b_proj.weight", self.q_width(), rank)?;
        }
        if self.latent_norm {
            list.vector("kv_a_layernorm.weight", self.kv_lora_rank, Init::Ones)?;
        }
        list.matrix("kv_b_proj.weight", self.kv_width(), self.kv_lora_rank)?;
        list.output("o_proj.weight", hidden, self.heads * self.v_head_dim, layers)
    }

    fn cache_layout(&self) -> Result<CacheLayout, ConfigError> {
        Ok(CacheLayout::new([
            Plane { name: "latent", width: self.kv_lora_rank },
            Plane { name: "k_rope", width: self.qk_rope_head_dim },
        ])?)
    }

    fn capacity(&self) -> Capacity {
        let shared_latent_dim = self.kv_lora_rank;
        Capacity { heads: self.heads, rank_per_head: self.qk_nope_head_dim, shared_latent_dim }
    }

    fn cost(&self, hidden: usize) -> Cost {
        let row = self.kv_lora_rank + self.qk_rope_head_dim;
        let queries = match self.q_lora_rank {
            Some(rank) => rank * (hidden + self.q_width()),
            None => hidden * self.q_width(),
        };
        let absorbed = self.kv_width() * self.kv_lora_rank;
        Cost {
            linear_flops: 2
                * (queries + hidden * row + absorbed + self.heads * self.v_head_dim * hidden) as u64,
            flops_per_context_token: 2 * (self.heads * (row + self.kv_lora_rank)) as u64,
            elements_per_context_token: row as u64,
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
            q_lora_rank: None,
            kv_lora_rank: scale.hidden / 4,
            qk_nope_head_dim: scale.head_dim,
            qk_rope_head_dim: if scale.position == Position::Rope {
                (scale.head_dim / 2).next_multiple_of(2)
            } else {
                0
            },
            v_head_dim: scale.head_dim,
            latent_norm: true,
            latent_norm_eps: latent_eps(),
            position: scale.position,
            rope_theta: scale.rope_theta,
            rope_scaling: None,
            rope_interleaved: false,
            softmax_scale: None,
        }
    }

    fn training(&self, scope: &Scope<'_>, shared: &Shared) -> Result<Box<dyn Attention>, WeightError> {
        Ok(Box::new(self.module(scope, shared)?))
    }

    fn decoding(&self, scope: &Scope<'_>, shared: &Shared) -> Result<Box<dyn CachedAttention>, WeightError> {
        Ok(Box::new(Absorbed::new(self.module(scope, shared)?)))
    }
}

struct Module {
    down: Projection,
    /// Norm and up projection of factorised queries.
    q_up: Option<(Option<Param>, Param)>,
    kv_norm: Option<Param>,
    kv_b: Param,
    o_proj: Param,
    sizes: MlaConfig,
    rope: Option<Arc<RopeTable>>,
    args: AttentionArgs,
}

impl Module {
    /// Queries [T, m * (n + p)], normalised latents [T, r_kv] and rope keys [T, p], not yet rotated.
    fn project(&self, tape: &mut Tape, x: &Var) -> [Var; 3] {
        let sizes = &self.sizes;
        let q_width = sizes.q_lora_rank.unwrap_or(sizes.q_width());
        let down = tape.project(x, &self.down);
        let [q, latent, k_rope] = tape.split(down, [q_width, sizes.kv_lora_rank, sizes.qk_rope_head_dim]);
        let norm = |tape: &mut Tape, x: Var, gain: &Option<Param>| match gain {
            Some(gain) => tape.rms_norm(&x, gain, sizes.latent_norm_eps as f32),
            None => x,
        };
        let q = match &self.q_up {
            Some((gain, up)) => {
                let q = norm(tape, q, gain);
                tape.linear(&q, up)
            }
            None => q,
        };
        [q, norm(tape, latent, &self.kv_norm), k_rope]
    }

    /// The rotated channels of the queries.
    fn query_rope(&self) -> RopeHeads {
        let sizes = &self.sizes;
        let stride = sizes.qk_nope_head_dim + sizes.qk_rope_head_dim;
        RopeHeads { count: sizes.heads, stride, offset: sizes.qk_nope_head_dim }
    }
}

impl Attention for Module {
    fn forward(&self, tape: &mut Tape, x: &Var, sequences: &Sequences) -> Var {
        let sizes = &self.sizes;
        let [q, latent, k_rope] = self.project(tape, x);
        let kv = tape.linear(&latent, &self.kv_b);
        let [nope, v] = tape.split_heads(kv, sizes.heads, [sizes.qk_nope_head_dim, sizes.v_head_dim]);
        let stride = sizes.qk_nope_head_dim + sizes.v_head_dim;
        let nope = HeadVar { var: &nope, count: sizes.heads, width: sizes.qk_nope_head_dim, stride };
        let v = HeadVar { var: &v, count: sizes.heads, width: sizes.v_head_dim, stride };
        let q_heads = HeadVar::packed(&q, sizes.heads);
        let mixed = match &self.rope {
            Some(rope) => {
                tape.rope_in_place(&q, self.query_rope(), rope, sequences);
                tape.rope_in_place(&k_rope, RopeHeads::adjacent(1, sizes.qk_rope_head_dim), rope, sequences);
                let keys = tape.mla_keys(nope, &k_rope);
                tape.attention(q_heads, HeadVar::packed(&keys, sizes.heads), v, &self.args, sequences)
            }
            None => tape.attention(q_heads, nope, v, &self.args, sequences),
        };
        tape.linear(&mixed, &self.o_proj)
    }
}

/// The form that decodes: per head W_UK (transposed) before the softmax and W_UV behind the sum.
struct Absorbed {
    module: Module,
    /// Per head the key's up projection transposed, [m * r_kv, n].
    key_up: Tensor,
    /// Per head the value's up projection, [m * v, r_kv].
    value_up: Tensor,
}

impl Absorbed {
    fn new(module: Module) -> Self {
        let sizes = &module.sizes;
        let (n, v, r) = (sizes.qk_nope_head_dim, sizes.v_head_dim, sizes.kv_lora_rank);
        let kv_b = module.kv_b.value.to_vec();
        let mut key_up = vec![0.0; sizes.heads * r * n];
        let mut value_up = Vec::with_capacity(sizes.heads * v * r);
        for (head, rows) in kv_b.chunks_exact((n + v) * r).enumerate() {
            for (channel, row) in rows[..n * r].chunks_exact(r).enumerate() {
                for (latent, weight) in row.iter().enumerate() {
                    key_up[(head * r + latent) * n + channel] = *weight;
                }
            }
            value_up.extend_from_slice(&rows[n * r..]);
        }
        let arena = Arena::new();
        let key_up = computed(arena.tensor_of(sizes.heads * r, n, &key_up), &module.kv_b.value);
        let value_up = computed(arena.tensor_of(sizes.heads * v, r, &value_up), &module.kv_b.value);
        Self { module, key_up, value_up }
    }
}

impl CachedAttention for Absorbed {
    fn forward(&self, tape: &mut Tape, x: &Var, step: &CacheStep<'_>) -> Var {
        let (module, sizes) = (&self.module, &self.module.sizes);
        let (n, p, v, r) =
            (sizes.qk_nope_head_dim, sizes.qk_rope_head_dim, sizes.v_head_dim, sizes.kv_lora_rank);
        let [mut q, latent, mut k_rope] = module.project(tape, x).map(|var| var.value().clone());
        if let Some(rope) = &module.rope {
            let at = step.positions();
            rope::apply(&mut q, module.query_rope(), rope, at, false);
            rope::apply(&mut k_rope, RopeHeads::adjacent(1, p), rope, at, false);
        }
        step.write(0, &latent);
        if p > 0 {
            step.write(1, &k_rope);
        }
        let new = step.new_tokens();
        let absorbed = tape.activations(new, sizes.heads * (r + p));
        let head_of = |tensor, width, stride| Heads { tensor, count: sizes.heads, width, stride };
        linear::forward_heads(head_of(&q, n, n + p), &self.key_up, head_of(&absorbed, r, r + p));
        if p > 0 {
            // All heads as rows, where the queries have no gaps between theirs.
            let (rows, heads) = if q.is_contiguous() { (new * sizes.heads, 1) } else { (new, sizes.heads) };
            let from = if heads == 1 { q.reshape(rows, n + p) } else { q.clone() };
            let to = absorbed.reshape(rows, heads * (r + p));
            for head in 0..heads {
                cast::copy(&from.columns(head * (n + p) + n, p), &mut to.columns(head * (r + p) + r, p));
            }
        }
        let read = tape.activations(new, sizes.heads * r);
        let (keys, values) = (step.planes(0, 1 + usize::from(p > 0)), step.planes(0, 1));
        let cached = Cached {
            k: Heads::packed(&keys, 1),
            v: Heads::packed(&values, 1),
            paged: step.paged(),
            scales: step.scales(),
            scale: module.args.scale,
            alibi: module.args.alibi.as_deref(),
            window: None,
            rotate: None,
        };
        attention::cached(Heads::packed(&absorbed, sizes.heads), &cached, Heads::packed(&read, sizes.heads));
        let mixed = tape.activations(new, sizes.heads * v);
        linear::forward_heads(
            Heads::packed(&read, sizes.heads),
            &self.value_up,
            Heads::packed(&mixed, sizes.heads),
        );
        let mixed = tape.leaf(mixed);
        tape.linear_later(&mixed, &module.o_proj)
    }
}
