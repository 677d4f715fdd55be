//! `Gemma3ForCausalLM`: grouped heads, normalised queries and keys, local layers among global ones, norms on both sides of
//! attention and MLP. Norm gains are stored less one.

use super::{Family, Names, common, read::Keys, rope};
use crate::{
    attention::Grouped,
    config::{Activation, LocalConfig, ModelConfig},
    error::ConfigError,
};
use serde_json::{Map, Value, json};

pub(super) const FAMILY: Family = Family {
    model_type: "gemma3_text",
    architecture: "Gemma3ForCausalLM",
    write,
    read,
    names: Names { gain_offset: 1.0, ..Names::PLAIN },
};

/// Local layers between global ones where a file does not say.
const PATTERN: usize = 6;
/// Rotary bases of global and local layers where a file does not say.
const GLOBAL_THETA: f64 = 1_000_000.0;
const LOCAL_THETA: f64 = 10_000.0;

fn read(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    for key in ["hidden_activation", "hidden_act"] {
        keys.only(key, &["gelu_pytorch_tanh".into()])?;
    }
    keys.only("attention_bias", &[false.into()])?;
    keys.only("attn_logit_softcapping", &[])?;
    keys.only("final_logit_softcapping", &[])?;
    keys.only("use_bidirectional_attention", &[false.into()])?;
    let global = rope::read(keys, Some("full_attention"))?;
    let grouped = common::read_grouped(keys, global)?;
    let scalar: f64 = keys.optional("query_pre_attn_scalar")?.unwrap_or(256.0);
    if !(scalar.is_finite() && scalar > 0.0) {
        return Err(ConfigError::value("query_pre_attn_scalar", "a finite number above 0", scalar));
    }
    let attention = Grouped {
        qk_norm: true,
        rope_theta: global.theta.unwrap_or(GLOBAL_THETA),
        softmax_scale: (scalar != grouped.head_dim as f64).then(|| scalar.powf(-0.5)),
        ..grouped
    };
    let mut config = common::read(keys, attention.config(), "max_position_embeddings")?;
    // The class ties them unless told otherwise.
    config.tie_word_embeddings = keys.optional("tie_word_embeddings")?.unwrap_or(true);
    config.activation = Activation::GeluTanh;
    config.post_norms = true;
    config.embedding_scale = Some((config.hidden_size as f64).sqrt());
    let pattern = keys.optional("sliding_window_pattern")?.unwrap_or(PATTERN);
    let by_pattern =
        || (0..config.num_hidden_layers).filter(|layer| (layer + 1) % pattern.max(1) != 0).collect();
    let layers: Vec<usize> = common::sliding_layers(keys)?.unwrap_or_else(by_pattern);
    if !layers.is_empty() {
        let named =
            keys.nested("rope_parameters")?.is_some_and(|all| all.all().contains_key("sliding_attention"));
        let theta = match named {
            true => rope::read(keys, Some("sliding_attention"))?.theta,
            false => keys.optional("rope_local_base_freq")?,
        };
        let rope_theta = Some(theta.unwrap_or(LOCAL_THETA));
        config.local = Some(LocalConfig { window: keys.required("sliding_window")?, layers, rope_theta });
    }
    Ok(config)
}

fn write(config: &ModelConfig) -> Option<Map<String, Value>> {
    let attention = common::grouped(config)?;
    let local = config.local.as_ref();
    let expressible = config.activation == Activation::GeluTanh
        && config.post_norms
        && config.embedding_scale == Some((config.hidden_size as f64).sqrt())
        && config.moe.is_none()
        && attention.qk_norm
        && !attention.qkv_bias
        && attention.window.is_none()
        && local.is_none_or(|local| local.rope_theta.is_some());
    if !expressible {
        return None;
    }
    let mut keys = common::write_grouped(config, &attention);
    let local_theta = local.and_then(|local| local.rope_theta).unwrap_or(LOCAL_THETA);
    let global = keys.remove("rope_parameters");
    keys.insert(
        "rope_parameters".into(),
        json!({
            "full_attention": global,
            "sliding_attention": { "rope_type": "default", "rope_theta": local_theta },
        }),
    );
    let scalar = attention.softmax_scale.map_or(attention.head_dim as f64, |scale| scale.powi(-2));
    // Powers of whole numbers lose their last digits on the way.
    let rounded = scalar.round();
    // The class takes whole numbers only as such.
    let scalar = if (scalar - rounded).abs() < 1e-9 * scalar { json!(rounded as u64) } else { json!(scalar) };
    keys.insert("query_pre_attn_scalar".into(), scalar);
    keys.insert("hidden_activation".into(), "gelu_pytorch_tanh".into());
    keys.insert("attention_bias".into(), false.into());
    keys.insert("rope_local_base_freq".into(), local_theta.into());
    keys.insert("sliding_window".into(), local.map_or(4096, |local| local.window).into());
    keys.insert("layer_types".into(), common::layer_types(local, config.num_hidden_layers));
    Some(keys)
}
