//! The figures of every design as formulas. Each is tested to give the number that the design itself tells.
//!
//! H hidden width, m query heads, g key/value heads, d head width, C shared width, r query rank; of MLA: r_q query rank,
//! r_kv latent, d_n, d_r, d_v channels of a head without rotation, with it, and of its value; of TPA: R_Q, R_K, R_V ranks.

mod expression;

pub use expression::{evaluate, latex, plain};

use keyfold_model::attention::{AttentionConfig, Reuse};
use serde::Serialize;

/// One layer's figures as formulas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Symbols {
    /// Cache elements per token.
    pub cache: &'static str,
    /// Elements of the matrices.
    pub parameters: &'static str,
    /// Query heads.
    pub heads: &'static str,
    /// Factorization rank per head.
    pub rank_per_head: &'static str,
    /// Shared latent subspace dimension.
    pub shared_latent_dim: &'static str,
    /// Total effective rank.
    pub total_effective_rank: &'static str,
}

/// The formulas of `attention`.
pub fn of(attention: &AttentionConfig) -> Symbols {
    let plain = Symbols {
        cache: "2 m d",
        parameters: "4 H m d",
        heads: "m",
        rank_per_head: "d",
        shared_latent_dim: "m d",
        total_effective_rank: "m d",
    };
    // The rank of a head is that of the narrower factor.
    let wide = |rank: usize, width: usize| if rank < width { ("r", "m r") } else { ("C", "m C") };
    match attention {
        AttentionConfig::Mha(_) => plain,
        AttentionConfig::Mqa(_) => {
            Symbols { cache: "2 d", parameters: "H (2 m d + 2 d)", shared_latent_dim: "d", ..plain }
        }
        AttentionConfig::Gqa(_) => {
            Symbols { cache: "2 g d", parameters: "H (2 m d + 2 g d)", shared_latent_dim: "g d", ..plain }
        }
        AttentionConfig::Mla(mla) => Symbols {
            cache: "r_kv + d_r",
            parameters: match mla.q_lora_rank {
                Some(_) => "H (r_q + r_kv + d_r + m d_v) + r_q m (d_n + d_r) + r_kv m (d_n + d_v)",
                None => "H (m (d_n + d_r) + r_kv + d_r + m d_v) + r_kv m (d_n + d_v)",
            },
            heads: "m",
            rank_per_head: "d_n",
            shared_latent_dim: "r_kv",
            total_effective_rank: "m d_n",
        },
        AttentionConfig::Mfa(mfa) => {
            let (rank_per_head, total_effective_rank) = wide(mfa.rank(), mfa.head_dim);
            Symbols {
                cache: "2 C",
                parameters: "H (r + 2 C + m C) + r m C",
                heads: "m",
                rank_per_head,
                shared_latent_dim: "C",
                total_effective_rank,
            }
        }
        AttentionConfig::MfaKr(kr) => {
            let (rank_per_head, total_effective_rank) = wide(kr.rank(), kr.head_dim);
            Symbols {
                cache: "C",
                parameters: match kr.reuse {
                    Reuse::Vanilla => "H (r + C + m C) + r m C",
                    Reuse::Projection | Reuse::Residual | Reuse::Gated => "H (r + C + m C) + r m C + C^2",
                },
                heads: "m",
                rank_per_head,
                shared_latent_dim: "C",
                total_effective_rank,
            }
        }
        AttentionConfig::Tpa(_) => Symbols {
            cache: "(R_K + R_V) (m + d)",
            parameters: "H (R_Q + R_K + R_V) (m + d) + H m d",
            shared_latent_dim: "R_K d",
            ..plain
        },
    }
}

/// The value of `name` for `attention` in a model of width `hidden`.
pub fn value(attention: &AttentionConfig, hidden: usize, name: &str) -> Option<u64> {
    if name == "H" {
        return Some(hidden as u64);
    }
    if name == "m" {
        return Some(attention.design().heads() as u64);
    }
    let value = match (attention, name) {
        (AttentionConfig::Mha(config), "d") => config.head_dim,
        (AttentionConfig::Mqa(config), "d") => config.head_dim,
        (AttentionConfig::Gqa(config), "d") => config.head_dim,
        (AttentionConfig::Gqa(config), "g") => config.kv_heads,
        (AttentionConfig::Mla(config), "r_q") => config.q_lora_rank?,
        (AttentionConfig::Mla(config), "r_kv") => config.kv_lora_rank,
        (AttentionConfig::Mla(config), "d_n") => config.qk_nope_head_dim,
        (AttentionConfig::Mla(config), "d_r") => config.qk_rope_head_dim,
        (AttentionConfig::Mla(config), "d_v") => config.v_head_dim,
        (AttentionConfig::Mfa(config), "C") => config.head_dim,
        (AttentionConfig::Mfa(config), "r") => config.rank(),
        (AttentionConfig::MfaKr(config), "C") => config.head_dim,
        (AttentionConfig::MfaKr(config), "r") => config.rank(),
        (AttentionConfig::Tpa(config), "d") => config.head_dim,
        (AttentionConfig::Tpa(config), "R_Q") => config.query_rank,
        (AttentionConfig::Tpa(config), "R_K") => config.key_rank,
        (AttentionConfig::Tpa(config), "R_V") => config.value_rank,
        _ => return None,
    };
    Some(value as u64)
}

#[cfg(test)]
mod tests;
