//! `LlamaForCausalLM` (Llama 2 and 3, SmolLM) and `MistralForCausalLM`, which adds windows: MHA, MQA and GQA with rotary
//! positions.

use super::{Family, Names, common, read::Keys, rope};
use crate::{config::ModelConfig, error::ConfigError};
use serde_json::{Map, Value};

pub(super) const LLAMA: Family =
    Family { model_type: "llama", architecture: "LlamaForCausalLM", write, read, names: Names::PLAIN };

pub(super) const MISTRAL: Family = Family {
    model_type: "mistral",
    architecture: "MistralForCausalLM",
    write: write_mistral,
    read: read_mistral,
    names: Names::PLAIN,
};

fn write(config: &ModelConfig) -> Option<Map<String, Value>> {
    write_with_window(config).filter(|(_, window)| window.is_none()).map(|(keys, _)| keys)
}

fn write_mistral(config: &ModelConfig) -> Option<Map<String, Value>> {
    let (mut keys, window) = write_with_window(config)?;
    keys.insert("sliding_window".into(), window.into());
    Some(keys)
}

fn write_with_window(config: &ModelConfig) -> Option<(Map<String, Value>, Option<usize>)> {
    let attention = common::grouped(config)?;
    let plain = common::is_plain(config) && config.moe.is_none() && config.local.is_none();
    if !plain || attention.qkv_bias || attention.qk_norm || attention.softmax_scale.is_some() {
        return None;
    }
    let mut keys = common::write_grouped(config, &attention);
    keys.insert("hidden_act".into(), "silu".into());
    keys.insert("attention_bias".into(), false.into());
    keys.insert("mlp_bias".into(), false.into());
    Some((keys, attention.window))
}

fn read(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    keys.only("hidden_act", &["silu".into(), "swish".into()])?;
    keys.only("attention_bias", &[false.into()])?;
    keys.only("mlp_bias", &[false.into()])?;
    let attention = common::read_grouped(keys, rope::read(keys, None)?)?;
    common::read(keys, attention.config(), "max_position_embeddings")
}

fn read_mistral(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    keys.only("hidden_act", &["silu".into(), "swish".into()])?;
    let mut attention = common::read_grouped(keys, rope::read(keys, None)?)?;
    attention.window = keys.optional("sliding_window")?;
    common::read(keys, attention.config(), "max_position_embeddings")
}
