//! `DeepseekV3ForCausalLM`: MLA with normalised latents and rotary positions, dense layers.

use super::{Family, llama::common, read::Keys};
use crate::{
    attention::{AttentionConfig, MlaConfig},
    config::ModelConfig,
    error::ConfigError,
    position::{Position, ROPE_THETA},
};
use serde_json::{Map, Value, json};

pub(super) const FAMILY: Family =
    Family { model_type: "deepseek_v3", architecture: "DeepseekV3ForCausalLM", write, read };

/// What the family's code uses whatever `rms_norm_eps` says.
const LATENT_NORM_EPS: f64 = 1e-6;

fn write(config: &ModelConfig) -> Option<Map<String, Value>> {
    let AttentionConfig::Mla(attention) = &config.attention else { return None };
    let expressible = attention.position == Position::Rope
        && attention.softmax_scale.is_none()
        && attention.latent_norm
        && attention.latent_norm_eps == LATENT_NORM_EPS;
    if !expressible {
        return None;
    }
    let keys = json!({
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.heads,
        "q_lora_rank": attention.q_lora_rank,
        "kv_lora_rank": attention.kv_lora_rank,
        "qk_nope_head_dim": attention.qk_nope_head_dim,
        "qk_rope_head_dim": attention.qk_rope_head_dim,
        "qk_head_dim": attention.qk_nope_head_dim + attention.qk_rope_head_dim,
        "v_head_dim": attention.v_head_dim,
        "rope_interleave": false,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": attention.rope_theta,
        "rope_scaling": null,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.init.std,
        "hidden_act": "silu",
        "attention_bias": false,
        // Every layer is dense: the experts are never built.
        "first_k_dense_replace": config.num_hidden_layers,
        "moe_intermediate_size": config.intermediate_size,
        "n_routed_experts": 1,
        "n_shared_experts": 1,
        "num_experts_per_tok": 1,
        "n_group": 1,
        "topk_group": 1,
    });
    keys.as_object().cloned()
}

fn read(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    keys.only("hidden_act", &["silu".into(), "swish".into()])?;
    keys.only("attention_bias", &[false.into()])?;
    keys.only("rope_scaling", &[])?;
    keys.only("rope_interleave", &[false.into()])?;
    if keys.optional::<bool>("rope_interleave")?.is_none() {
        return Err(ConfigError::Missing {
            key: "rope_interleave".into(),
            expected: "false: its default, interleaved pairs, is not supported".into(),
        });
    }
    let layers: usize = keys.required("num_hidden_layers")?;
    let dense: usize = keys.required("first_k_dense_replace")?;
    if dense < layers {
        let expected = format!("num_hidden_layers = {layers}: mixtures of experts are not supported");
        return Err(ConfigError::value("first_k_dense_replace", expected, dense));
    }
    let attention = AttentionConfig::Mla(MlaConfig {
        heads: keys.required("num_attention_heads")?,
        q_lora_rank: keys.optional("q_lora_rank")?,
        kv_lora_rank: keys.required("kv_lora_rank")?,
        qk_nope_head_dim: keys.required("qk_nope_head_dim")?,
        qk_rope_head_dim: keys.required("qk_rope_head_dim")?,
        v_head_dim: keys.required("v_head_dim")?,
        latent_norm: true,
        latent_norm_eps: LATENT_NORM_EPS,
        position: Position::Rope,
        rope_theta: keys.rope_theta()?.unwrap_or(ROPE_THETA),
        softmax_scale: None,
    });
    common(keys, keys.required("hidden_size")?, attention, "max_position_embeddings")
}
