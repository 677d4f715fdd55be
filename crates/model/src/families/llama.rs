//! `LlamaForCausalLM`: MHA, MQA and GQA with rotary positions.

use super::{Family, read::Keys};
use crate::{
    attention::{AttentionConfig, GqaConfig, MhaConfig, MqaConfig},
    config::ModelConfig,
    error::ConfigError,
    position::{Position, ROPE_THETA},
    weights::InitConfig,
};
use serde_json::{Map, Value, json};

pub(super) const FAMILY: Family =
    Family { model_type: "llama", architecture: "LlamaForCausalLM", write, read };

fn write(config: &ModelConfig) -> Option<Map<String, Value>> {
    let (heads, kv_heads, head_dim, position, theta, scale) = match &config.attention {
        AttentionConfig::Mha(a) => (a.heads, a.heads, a.head_dim, a.position, a.rope_theta, a.softmax_scale),
        AttentionConfig::Mqa(a) => (a.heads, 1, a.head_dim, a.position, a.rope_theta, a.softmax_scale),
        AttentionConfig::Gqa(a) => {
            (a.heads, a.kv_heads, a.head_dim, a.position, a.rope_theta, a.softmax_scale)
        }
        _ => return None,
    };
    if position != Position::Rope || scale.is_some() {
        return None;
    }
    let keys = json!({
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": theta,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.init.std,
        "hidden_act": "silu",
        "attention_bias": false,
        "mlp_bias": false,
    });
    keys.as_object().cloned()
}

fn read(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    keys.only("hidden_act", &["silu".into(), "swish".into()])?;
    keys.only("attention_bias", &[false.into()])?;
    keys.only("mlp_bias", &[false.into()])?;
    keys.only("rope_scaling", &[])?;
    let hidden_size: usize = keys.required("hidden_size")?;
    let heads: usize = keys.required("num_attention_heads")?;
    let kv_heads = keys.optional("num_key_value_heads")?.unwrap_or(heads);
    let head_dim = match keys.optional("head_dim")? {
        Some(head_dim) => head_dim,
        None if heads > 0 && hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            let expected = format!("a divisor of hidden_size = {hidden_size}, or head_dim");
            return Err(ConfigError::value("num_attention_heads", expected, heads));
        }
    };
    let rope_theta = keys.rope_theta()?.unwrap_or(ROPE_THETA);
    let (position, softmax_scale) = (Position::Rope, None);
    let attention = if kv_heads == heads {
        AttentionConfig::Mha(MhaConfig { heads, head_dim, position, rope_theta, softmax_scale })
    } else if kv_heads == 1 {
        AttentionConfig::Mqa(MqaConfig { heads, head_dim, position, rope_theta, softmax_scale })
    } else {
        AttentionConfig::Gqa(GqaConfig { heads, kv_heads, head_dim, position, rope_theta, softmax_scale })
    };
    common(keys, hidden_size, attention, "max_position_embeddings")
}

/// The keys that the Hugging Face families share.
pub(super) fn common(
    keys: &Keys<'_>,
    hidden_size: usize,
    attention: AttentionConfig,
    positions_key: &str,
) -> Result<ModelConfig, ConfigError> {
    let init = InitConfig::default();
    Ok(ModelConfig {
        vocab_size: keys.required("vocab_size")?,
        hidden_size,
        num_hidden_layers: keys.required("num_hidden_layers")?,
        intermediate_size: keys.required("intermediate_size")?,
        max_position_embeddings: keys.required(positions_key)?,
        tie_word_embeddings: keys.optional("tie_word_embeddings")?.unwrap_or(false),
        rms_norm_eps: keys.optional("rms_norm_eps")?.unwrap_or(1e-6),
        init: InitConfig { std: keys.optional("initializer_range")?.unwrap_or(init.std), ..init },
        attention,
    })
}
