//! `DeepseekV3ForCausalLM` and `DeepseekV2ForCausalLM`: MLA with normalised latents and rotary positions, dense layers and
//! mixtures of experts.

use super::{
    Family, Names, common,
    read::Keys,
    rope::{self, RopeKeys},
};
use crate::{
    attention::{AttentionConfig, MlaConfig},
    config::{ModelConfig, MoeConfig, RouterScoring},
    error::ConfigError,
    position::{Position, ROPE_THETA, RopeScaling},
};
use serde_json::{Map, Value};

pub(super) const V3: Family = Family {
    model_type: "deepseek_v3",
    architecture: "DeepseekV3ForCausalLM",
    write,
    read: read_v3,
    names: Names { further_layers: true, ..Names::PLAIN },
};

pub(super) const V2: Family = Family {
    model_type: "deepseek_v2",
    architecture: "DeepseekV2ForCausalLM",
    // Version 3 expresses what version 2 does, but for softmax routers.
    write: |_| None,
    read: read_v2,
    names: Names { further_layers: true, ..Names::PLAIN },
};

/// What the family's code uses whatever `rms_norm_eps` says.
const LATENT_NORM_EPS: f64 = 1e-6;

/// The factor on scores: (n + p)^-0.5, times YaRN's amplitude squared where `mscale_all_dim` is given.
fn softmax_scale(width: usize, rope: &RopeKeys) -> Option<f64> {
    match (rope.scaling, rope.mscale_all_dim) {
        (Some(RopeScaling::Yarn { factor, .. }), Some(mscale)) => {
            Some((width as f64).powf(-0.5) * RopeScaling::yarn_amplitude(factor, mscale).powi(2))
        }
        _ => None,
    }
}

/// The `mscale_all_dim` that [`softmax_scale`] makes `scale` of.
fn mscale_all_dim(width: usize, factor: f64, scale: f64) -> f64 {
    ((scale * (width as f64).sqrt()).sqrt() - 1.0) / (0.1 * factor.ln())
}

fn attention(keys: &Keys<'_>, rope_interleaved: bool) -> Result<AttentionConfig, ConfigError> {
    keys.only("hidden_act", &["silu".into(), "swish".into()])?;
    keys.only("attention_bias", &[false.into()])?;
    let rope = rope::read(keys, None)?;
    let (nope, rotated): (usize, usize) =
        (keys.required("qk_nope_head_dim")?, keys.required("qk_rope_head_dim")?);
    Ok(AttentionConfig::Mla(MlaConfig {
        heads: keys.required("num_attention_heads")?,
        q_lora_rank: keys.optional("q_lora_rank")?,
        kv_lora_rank: keys.required("kv_lora_rank")?,
        qk_nope_head_dim: nope,
        qk_rope_head_dim: rotated,
        v_head_dim: keys.required("v_head_dim")?,
        latent_norm: true,
        latent_norm_eps: LATENT_NORM_EPS,
        position: Position::Rope,
        rope_theta: rope.theta.unwrap_or(ROPE_THETA),
        rope_scaling: rope.scaling,
        rope_interleaved,
        softmax_scale: softmax_scale(nope.saturating_add(rotated), &rope),
    }))
}

fn read_v3(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    keys.only("scoring_func", &["sigmoid".into()])?;
    keys.only("topk_method", &["noaux_tc".into()])?;
    let attention = attention(keys, keys.optional("rope_interleave")?.unwrap_or(true))?;
    let mut config = common::read(keys, attention, "max_position_embeddings")?;
    config.moe = experts(keys, config.num_hidden_layers)?.map(|moe| MoeConfig {
        scoring: RouterScoring::Sigmoid,
        choice_bias: true,
        ..moe
    });
    if let Some(moe) = &mut config.moe {
        moe.normalise = keys.optional("norm_topk_prob")?.unwrap_or(true);
    }
    Ok(config)
}

fn read_v2(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    keys.only("scoring_func", &["softmax".into()])?;
    keys.only("norm_topk_prob", &[false.into()])?;
    keys.only("topk_method", &["greedy".into(), "group_limited_greedy".into()])?;
    let mut config = common::read(keys, attention(keys, true)?, "max_position_embeddings")?;
    config.moe = experts(keys, config.num_hidden_layers)?;
    let method: Option<String> = keys.optional("topk_method")?;
    if let Some(moe) = config.moe.as_mut().filter(|_| method.as_deref() != Some("group_limited_greedy")) {
        (moe.groups, moe.top_groups) = (1, 1);
    }
    Ok(config)
}

/// The mixture of experts, unless all layers are dense.
fn experts(keys: &Keys<'_>, layers: usize) -> Result<Option<MoeConfig>, ConfigError> {
    let dense: usize = keys.optional("first_k_dense_replace")?.unwrap_or(0);
    let Some(experts) = keys.optional("n_routed_experts")? else { return Ok(None) };
    if dense >= layers {
        return Ok(None);
    }
    let frequency: usize = keys.optional("moe_layer_freq")?.unwrap_or(1);
    if frequency == 0 {
        return Err(ConfigError::value("moe_layer_freq", "at least 1", frequency));
    }
    let expert_size: usize = keys.required("moe_intermediate_size")?;
    let shared: usize = keys.optional("n_shared_experts")?.unwrap_or(0);
    let shared_size = expert_size
        .checked_mul(shared)
        .ok_or_else(|| ConfigError::value("n_shared_experts", "so few that their widths add up", shared))?;
    Ok(Some(MoeConfig {
        experts,
        top_k: keys.required("num_experts_per_tok")?,
        expert_size,
        shared_size,
        dense_layers: (0..layers).filter(|layer| *layer < dense || layer % frequency != 0).collect(),
        scoring: RouterScoring::Softmax,
        normalise: false,
        scaling: keys.optional("routed_scaling_factor")?.unwrap_or(1.0),
        groups: keys.optional("n_group")?.unwrap_or(1),
        top_groups: keys.optional("topk_group")?.unwrap_or(1),
        choice_bias: false,
    }))
}

fn write(config: &ModelConfig) -> Option<Map<String, Value>> {
    let AttentionConfig::Mla(attention) = &config.attention else { return None };
    let expressible = attention.position == Position::Rope
        && attention.latent_norm
        && attention.latent_norm_eps == LATENT_NORM_EPS
        && common::is_plain(config)
        && config.local.is_none();
    if !expressible {
        return None;
    }
    let width = attention.qk_nope_head_dim + attention.qk_rope_head_dim;
    let mut keys = common::write(config);
    rope::insert(&mut keys, attention.rope_theta, attention.rope_scaling);
    match (attention.softmax_scale, attention.rope_scaling) {
        (None, None) => {}
        (Some(scale), Some(RopeScaling::Yarn { factor, attention_factor: 1.0, .. })) => {
            let mscale = mscale_all_dim(width, factor, scale);
            for key in ["rope_scaling", "rope_parameters"] {
                let parameters = keys.get_mut(key).and_then(Value::as_object_mut)?;
                parameters.insert("mscale".into(), mscale.into());
                parameters.insert("mscale_all_dim".into(), mscale.into());
            }
        }
        _ => return None,
    }
    let mut set = |key: &str, value: Value| keys.insert(key.into(), value);
    set("num_attention_heads", attention.heads.into());
    set("num_key_value_heads", attention.heads.into());
    set("q_lora_rank", attention.q_lora_rank.into());
    set("kv_lora_rank", attention.kv_lora_rank.into());
    set("qk_nope_head_dim", attention.qk_nope_head_dim.into());
    set("qk_rope_head_dim", attention.qk_rope_head_dim.into());
    set("qk_head_dim", width.into());
    set("v_head_dim", attention.v_head_dim.into());
    set("rope_interleave", attention.rope_interleaved.into());
    set("hidden_act", "silu".into());
    set("attention_bias", false.into());
    set("moe_layer_freq", 1.into());
    match &config.moe {
        // Every layer is dense: the experts are never built.
        None => {
            set("first_k_dense_replace", config.num_hidden_layers.into());
            set("moe_intermediate_size", config.intermediate_size.into());
            for key in
                ["n_routed_experts", "n_shared_experts", "num_experts_per_tok", "n_group", "topk_group"]
            {
                set(key, 1.into());
            }
        }
        Some(moe) => {
            let first = moe.dense_layers.len();
            let expressible = moe.dense_layers.iter().copied().eq(0..first)
                && moe.scoring == RouterScoring::Sigmoid
                && moe.choice_bias
                && moe.shared_size > 0
                && moe.shared_size.is_multiple_of(moe.expert_size);
            if !expressible {
                return None;
            }
            set("first_k_dense_replace", first.into());
            set("moe_intermediate_size", moe.expert_size.into());
            set("n_routed_experts", moe.experts.into());
            set("n_shared_experts", (moe.shared_size / moe.expert_size).into());
            set("num_experts_per_tok", moe.top_k.into());
            set("n_group", moe.groups.into());
            set("topk_group", moe.top_groups.into());
            set("norm_topk_prob", moe.normalise.into());
            set("routed_scaling_factor", moe.scaling.into());
            set("scoring_func", "sigmoid".into());
            set("topk_method", "noaux_tc".into());
        }
    }
    Some(keys)
}
