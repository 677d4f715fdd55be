//! Checkpoint families: how `config.json` says what a model is. Weight names are Hugging Face's throughout, so a family
//! is a mapping of configurations, both ways.
//!
//! A model is written in the first family that can express it, so that other software can open it; the project's own
//! family expresses everything.

mod common;
mod deepseek;
mod form;
mod gemma3;
mod keyfold;
mod llama;
mod names;
mod qwen;
mod read;
mod rope;
mod step3_text;

pub use form::{Form, ParseFormError};
pub use names::{Names, Place};

use crate::{config::ModelConfig, error::ConfigError};
use keyfold_core::DType;
use serde_json::{Map, Value};

/// A way to write configurations.
pub struct Family {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// `architectures[0]` in `config.json`.
    pub architecture: &'static str,
    /// The configuration in this family's keys; `None` if the family cannot express the model.
    write: fn(&ModelConfig) -> Option<Map<String, Value>>,
    /// The model that this family's keys describe.
    read: fn(&read::Keys<'_>) -> Result<ModelConfig, ConfigError>,
    /// How weights are named and stored.
    pub names: Names,
}

/// All families; the first that can express a model writes it.
pub const FAMILIES: &[Family] = &[
    llama::LLAMA,
    llama::MISTRAL,
    qwen::QWEN2,
    qwen::QWEN3,
    qwen::QWEN3_MOE,
    gemma3::FAMILY,
    step3_text::FAMILY,
    deepseek::V3,
    deepseek::V2,
    keyfold::FAMILY,
];

/// Model types that wrap a language model of another type, described under `text_config`.
const WRAPPERS: [&str; 3] = ["gemma3", "step3_vl", "mistral3"];

/// The family that a model is written in.
pub fn of(config: &ModelConfig) -> &'static Family {
    FAMILIES.iter().find(|family| (family.write)(config).is_some()).unwrap_or(&keyfold::FAMILY)
}

/// `config.json` of a model whose matrices are stored as `dtype`, in the family of [`of`].
pub fn write(config: &ModelConfig, dtype: DType) -> Value {
    of(config).config_json(config, dtype)
}

impl Family {
    /// `config.json` of a model, which this family must be able to express: see [`Form::family`].
    pub fn config_json(&self, config: &ModelConfig, dtype: DType) -> Value {
        let mut keys = (self.write)(config).unwrap_or_default();
        keys.insert("model_type".into(), self.model_type.into());
        keys.insert("architectures".into(), vec![Value::from(self.architecture)].into());
        let name = match dtype {
            DType::F32 => "float32",
            DType::Bf16 => "bfloat16",
            DType::Fp8 => "float8_e4m3fn",
        };
        keys.insert("torch_dtype".into(), name.into());
        Value::Object(keys)
    }
}

/// The model that a `config.json` describes, and the family it is written in.
///
/// # Errors
/// When its `model_type` is not known, or a key is missing or has a value that this software does not support.
pub fn read_with_family(json: &Value) -> Result<(ModelConfig, &'static Family), ConfigError> {
    let keys = read::Keys::new(json)?;
    let model_type: String = keys.required("model_type")?;
    if WRAPPERS.contains(&model_type.as_str())
        && let Some(text) = json.get("text_config")
    {
        return read_with_family(text).map_err(|error| error.under("text_config"));
    }
    let known = || FAMILIES.iter().map(|family| family.model_type).collect::<Vec<_>>().join(", ");
    let family = FAMILIES
        .iter()
        .find(|family| family.model_type == model_type)
        .ok_or_else(|| ConfigError::value("model_type", format!("one of {}", known()), &model_type))?;
    Ok(((family.read)(&keys)?, family))
}

/// As [`read_with_family`], the model alone.
///
/// # Errors
/// As [`read_with_family`].
pub fn read(json: &Value) -> Result<ModelConfig, ConfigError> {
    read_with_family(json).map(|(config, _)| config)
}

#[cfg(test)]
mod tests;
