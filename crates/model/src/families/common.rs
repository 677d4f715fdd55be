//! Keys that most families share.

use super::{
    read::Keys,
    rope::{self, RopeKeys},
};
use crate::{
    attention::{AttentionConfig, Grouped},
    config::{Activation, LocalConfig, MAX_LAYERS, ModelConfig},
    error::ConfigError,
    position::{Position, ROPE_THETA},
    weights::InitConfig,
};
use serde_json::{Map, Value, json};

/// A model of the keys that the Hugging Face families share, with the given attention.
pub(super) fn read(
    keys: &Keys<'_>,
    attention: AttentionConfig,
    positions_key: &str,
) -> Result<ModelConfig, ConfigError> {
    let init = InitConfig::default();
    let num_hidden_layers = keys.required("num_hidden_layers")?;
    // Families list layers, which must not fill the memory before the model is validated.
    if num_hidden_layers > MAX_LAYERS {
        let expected = format!("at most {MAX_LAYERS}");
        return Err(ConfigError::value("num_hidden_layers", expected, num_hidden_layers));
    }
    Ok(ModelConfig {
        vocab_size: keys.required("vocab_size")?,
        hidden_size: keys.required("hidden_size")?,
        num_hidden_layers,
        intermediate_size: keys.required("intermediate_size")?,
        max_position_embeddings: keys.required(positions_key)?,
        tie_word_embeddings: keys.optional("tie_word_embeddings")?.unwrap_or(false),
        rms_norm_eps: keys.optional("rms_norm_eps")?.unwrap_or(1e-6),
        init: InitConfig { std: keys.optional("initializer_range")?.unwrap_or(init.std), ..init },
        activation: Activation::Silu,
        post_norms: false,
        embedding_scale: None,
        moe: None,
        local: None,
        attention,
    })
}

/// The shared keys of `config`.
pub(super) fn write(config: &ModelConfig) -> Map<String, Value> {
    let keys = json!({
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.init.std,
    });
    keys.as_object().cloned().unwrap_or_default()
}

/// Whether `config` is a plain decoder apart from its attention and experts: SwiGLU, no further norms, no scaling.
pub(super) fn is_plain(config: &ModelConfig) -> bool {
    config.activation == Activation::Silu && !config.post_norms && config.embedding_scale.is_none()
}

/// MHA, MQA or GQA from the shared keys.
pub(super) fn read_grouped(keys: &Keys<'_>, rope: RopeKeys) -> Result<Grouped, ConfigError> {
    let hidden_size: usize = keys.required("hidden_size")?;
    let heads: usize = keys.required("num_attention_heads")?;
    let head_dim = match keys.optional("head_dim")? {
        Some(head_dim) => head_dim,
        None if heads > 0 && hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            let expected = format!("a divisor of hidden_size = {hidden_size}, or head_dim");
            return Err(ConfigError::value("num_attention_heads", expected, heads));
        }
    };
    let kv_heads = keys.optional("num_key_value_heads")?.unwrap_or(heads);
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        let expected = format!("a divisor of num_attention_heads = {heads}");
        return Err(ConfigError::value("num_key_value_heads", expected, kv_heads));
    }
    Ok(Grouped {
        heads,
        kv_heads,
        head_dim,
        qkv_bias: false,
        qk_norm: false,
        position: Position::Rope,
        rope_theta: rope.theta.unwrap_or(ROPE_THETA),
        rope_scaling: rope.scaling,
        softmax_scale: None,
        window: None,
    })
}

/// MHA, MQA or GQA with rotary positions; other designs are not a grouped family's.
pub(super) fn grouped(config: &ModelConfig) -> Option<Grouped> {
    let grouped = match &config.attention {
        AttentionConfig::Mha(config) => config.grouped(),
        AttentionConfig::Mqa(config) => config.grouped(),
        AttentionConfig::Gqa(config) => config.grouped(),
        _ => return None,
    };
    (grouped.position == Position::Rope).then_some(grouped)
}

/// The shared keys of `config` with those of its attention.
pub(super) fn write_grouped(config: &ModelConfig, attention: &Grouped) -> Map<String, Value> {
    let mut keys = write(config);
    keys.insert("num_attention_heads".into(), attention.heads.into());
    keys.insert("num_key_value_heads".into(), attention.kv_heads.into());
    keys.insert("head_dim".into(), attention.head_dim.into());
    rope::insert(&mut keys, attention.rope_theta, attention.rope_scaling);
    keys
}

/// The layers that `layer_types` calls sliding; `None` without the key.
pub(super) fn sliding_layers(keys: &Keys<'_>) -> Result<Option<Vec<usize>>, ConfigError> {
    let Some(types) = keys.optional::<Vec<String>>("layer_types")? else { return Ok(None) };
    let layers: usize = keys.required("num_hidden_layers")?;
    if types.len() != layers {
        let expected = format!("one for each of num_hidden_layers = {layers}");
        return Err(ConfigError::value("layer_types", expected, format!("{} entries", types.len())));
    }
    let mut sliding = Vec::new();
    for (layer, kind) in types.iter().enumerate() {
        match kind.as_str() {
            "sliding_attention" => sliding.push(layer),
            "full_attention" => {}
            other => {
                let expected = "full_attention or sliding_attention";
                return Err(ConfigError::value(format!("layer_types[{layer}]"), expected, other));
            }
        }
    }
    Ok(Some(sliding))
}

/// `layer_types` of a model with `layers` layers.
pub(super) fn layer_types(local: Option<&LocalConfig>, layers: usize) -> Value {
    let is_local = |layer: usize| local.is_some_and(|local| local.layers.contains(&layer));
    let name = |layer| if is_local(layer) { "sliding_attention" } else { "full_attention" };
    (0..layers).map(name).collect()
}
