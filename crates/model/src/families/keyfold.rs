//! `KeyfoldForCausalLM`: the project's own configuration tree, which expresses every model.

use super::{Family, Names, read::Keys};
use crate::{config::ModelConfig, error::ConfigError};
use serde::Deserialize;
use serde_json::{Map, Value};

pub(super) const FAMILY: Family =
    Family { model_type: "keyfold", architecture: "KeyfoldForCausalLM", write, read, names: Names::PLAIN };

/// Keys of `config.json` that are not part of the tree.
const ENVELOPE: [&str; 3] = ["model_type", "architectures", "torch_dtype"];

fn write(config: &ModelConfig) -> Option<Map<String, Value>> {
    serde_json::to_value(config).ok().and_then(|value| value.as_object().cloned())
}

fn read(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let mut tree = keys.all().clone();
    tree.retain(|key, _| !ENVELOPE.contains(&key.as_str()));
    ModelConfig::deserialize(Value::Object(tree))
        .map_err(|error| ConfigError::value("config.json", "a keyfold model", error))
}
