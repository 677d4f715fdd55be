//! `Step3TextForCausalLM`: MFA with a normalised latent query and rotary positions, dense layers.

use super::{Family, llama::common, read::Keys};
use crate::{
    attention::{AttentionConfig, MfaConfig},
    config::ModelConfig,
    error::ConfigError,
    position::Position,
};
use serde_json::{Map, Value, json};

pub(super) const FAMILY: Family =
    Family { model_type: "step3_text", architecture: "Step3TextForCausalLM", write, read };

/// Step-3's rotary base, the default of its configuration class.
const STEP3_ROPE_THETA: f64 = 500_000.0;

fn write(config: &ModelConfig) -> Option<Map<String, Value>> {
    let AttentionConfig::Mfa(attention) = &config.attention else { return None };
    if attention.position != Position::Rope || attention.softmax_scale.is_some() || !attention.query_norm {
        return None;
    }
    let keys = json!({
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": attention.heads,
        "num_attention_groups": 1,
        "head_dim": attention.head_dim,
        "share_q_dim": attention.rank(),
        // The class has the singular; one engine reads the plural.
        "max_position_embedding": config.max_position_embeddings,
        "max_position_embeddings": config.max_position_embeddings,
        "max_seq_len": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": attention.rope_theta,
        "rope_scaling": null,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.init.std,
        // Engines split this string at commas: no layer is a mixture of experts.
        "moe_layers_enum": "",
        "moe_num_experts": 1,
        "moe_top_k": 1,
        "moe_intermediate_size": config.intermediate_size,
        "share_expert_dim": config.intermediate_size,
        "norm_expert_weight": false,
    });
    keys.as_object().cloned()
}

fn read(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    keys.only("num_attention_groups", &[1.into()])?;
    keys.only("rope_scaling", &[])?;
    keys.only("moe_layers_enum", &["".into()])?;
    let head_dim = keys.required("head_dim")?;
    let attention = AttentionConfig::Mfa(MfaConfig {
        heads: keys.required("num_attention_heads")?,
        head_dim,
        query_rank: keys.optional("share_q_dim")?.filter(|rank| *rank != head_dim),
        query_norm: true,
        position: Position::Rope,
        rope_theta: keys.rope_theta()?.unwrap_or(STEP3_ROPE_THETA),
        softmax_scale: None,
    });
    common(keys, keys.required("hidden_size")?, attention, "max_position_embedding")
}
