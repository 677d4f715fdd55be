//! Rotary keys of `config.json`: `rope_theta` and `rope_scaling`, or `rope_parameters` as newer files have it.

use super::read::Keys;
use crate::{error::ConfigError, position::RopeScaling};
use serde_json::{Map, Value, json};

/// What a file says of rotary positions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct RopeKeys {
    pub(super) theta: Option<f64>,
    pub(super) scaling: Option<RopeScaling>,
    /// YaRN's `mscale_all_dim`, by which DeepSeek scales scores.
    pub(super) mscale_all_dim: Option<f64>,
}

/// Reads the rotary keys; `part` names the entry of `rope_parameters` where there is one for each kind of layer.
pub(super) fn read(keys: &Keys<'_>, part: Option<&str>) -> Result<RopeKeys, ConfigError> {
    if let Some(parameters) = keys.nested("rope_parameters")? {
        let named = match part {
            Some(part) => parameters.nested(part).map_err(|error| error.under("rope_parameters"))?,
            None => None,
        };
        let read = |parameters: &Keys<'_>| {
            let scaling = scaling(parameters, keys)?;
            Ok(RopeKeys { theta: parameters.optional("rope_theta")?, ..scaling })
        };
        let found = match (&named, part) {
            (Some(named), Some(part)) => read(named).map_err(|error: ConfigError| error.under(part)),
            _ => read(&parameters),
        };
        return found.map_err(|error| error.under("rope_parameters"));
    }
    let theta = keys.optional("rope_theta")?;
    match keys.nested("rope_scaling")? {
        None => Ok(RopeKeys { theta, ..RopeKeys::default() }),
        Some(parameters) => {
            let scaling = scaling(&parameters, keys).map_err(|error| error.under("rope_scaling"))?;
            Ok(RopeKeys { theta, ..scaling })
        }
    }
}

fn scaling(parameters: &Keys<'_>, model: &Keys<'_>) -> Result<RopeKeys, ConfigError> {
    let kind: Option<String> = match parameters.optional("rope_type")? {
        Some(kind) => Some(kind),
        None => parameters.optional("type")?,
    };
    let original = || -> Result<usize, ConfigError> {
        if let Some(positions) = parameters.optional("original_max_position_embeddings")? {
            return Ok(positions);
        }
        model.required("max_position_embeddings")
    };
    let mut mscale_all_dim = None;
    let scaling = match kind.as_deref() {
        None | Some("default") => None,
        Some("linear") => Some(RopeScaling::Linear { factor: parameters.required("factor")? }),
        Some("llama3") => Some(RopeScaling::Llama3 {
            factor: parameters.required("factor")?,
            low_freq_factor: parameters.required("low_freq_factor")?,
            high_freq_factor: parameters.required("high_freq_factor")?,
            original_positions: original()?,
        }),
        Some("yarn") => {
            let factor = parameters.required("factor")?;
            mscale_all_dim = parameters.optional("mscale_all_dim")?.filter(|m: &f64| *m != 0.0);
            let mscale: Option<f64> = parameters.optional("mscale")?.filter(|m| *m != 0.0);
            let amplitude = |mscale| RopeScaling::yarn_amplitude(factor, mscale);
            let attention_factor = match (parameters.optional("attention_factor")?, mscale, mscale_all_dim) {
                (Some(factor), ..) => factor,
                (None, Some(mscale), Some(all)) => amplitude(mscale) / amplitude(all),
                _ => amplitude(1.0),
            };
            Some(RopeScaling::Yarn {
                factor,
                beta_fast: parameters.optional("beta_fast")?.unwrap_or(32.0),
                beta_slow: parameters.optional("beta_slow")?.unwrap_or(1.0),
                original_positions: original()?,
                attention_factor,
                truncate: parameters.optional("truncate")?.unwrap_or(true),
            })
        }
        Some(other) => {
            return Err(ConfigError::value("rope_type", "one of default, linear, llama3, yarn", other));
        }
    };
    Ok(RopeKeys { theta: None, scaling, mscale_all_dim })
}

/// `rope_scaling` in the form that older and newer software reads.
pub(super) fn write(scaling: Option<RopeScaling>) -> Value {
    match scaling {
        None => Value::Null,
        Some(RopeScaling::Linear { factor }) => json!({ "rope_type": "linear", "factor": factor }),
        Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions }) => {
            json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_positions,
            })
        }
        Some(RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_positions,
            attention_factor,
            truncate,
        }) => json!({
            "rope_type": "yarn",
            "factor": factor,
            "beta_fast": beta_fast,
            "beta_slow": beta_slow,
            "original_max_position_embeddings": original_positions,
            "attention_factor": attention_factor,
            "truncate": truncate,
        }),
    }
}

/// Adds `rope_theta`, `rope_scaling` and `rope_parameters`, which say the same to different versions of readers.
pub(super) fn insert(keys: &mut Map<String, Value>, theta: f64, scaling: Option<RopeScaling>) {
    let old = write(scaling);
    let mut new = old.as_object().cloned().unwrap_or_default();
    new.entry("rope_type").or_insert("default".into());
    new.insert("rope_theta".into(), theta.into());
    keys.insert("rope_theta".into(), theta.into());
    keys.insert("rope_scaling".into(), old);
    keys.insert("rope_parameters".into(), new.into());
}
