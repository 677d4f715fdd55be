//! generation_config.json: which tokens end a text, and how tokens are chosen.

use anyhow::Context;
use keyfold_data::Tokenizer;
use keyfold_model::checkpoint;
use keyfold_ops::sample::{Repetition, SampleError, Sampler};
use serde_json::{Map, Value};
use std::path::Path;

/// What a model folder says about generating.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Defaults {
    /// Tokens that end a text.
    pub(crate) ends: Vec<u32>,
    pub(crate) temperature: Option<f32>,
    pub(crate) top_k: Option<usize>,
    pub(crate) top_p: Option<f32>,
    pub(crate) min_p: Option<f32>,
    pub(crate) repetition_penalty: Option<f32>,
}

/// The file's name in a model folder.
pub(crate) const FILE: &str = "generation_config.json";
const ENDS: &str = "eos_token_id";

impl Defaults {
    /// Reads `generation_config.json`, which may be absent; the tokens that end a text also come from `config.json` and the
    /// tokenizer.
    pub(super) fn read(dir: &Path, tokenizer: &Tokenizer) -> anyhow::Result<Self> {
        let path = dir.join(FILE);
        let keys = object(&path)?;
        let number = |key: &str| -> anyhow::Result<Option<f32>> {
            let Some(value) = keys.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
            let number = value.as_f64().map(|number| number as f32);
            Ok(Some(number.with_context(|| wrong(&path, key, "a number", value))?))
        };
        let mut ends = ids(&path, &keys)?;
        if ends.is_empty() {
            let path = dir.join(checkpoint::CONFIG_FILE);
            ends = ids(&path, &object(&path)?)?;
        }
        if !ends.contains(&tokenizer.eos()) {
            ends.push(tokenizer.eos());
        }
        // Told not to sample, a model takes the likeliest token whatever the other keys say.
        let greedy = keys.get("do_sample") == Some(&Value::Bool(false));
        let top_k = match keys.get("top_k").filter(|value| !value.is_null()) {
            None => None,
            Some(value) => {
                Some(value.as_u64().with_context(|| wrong(&path, "top_k", "a whole number", value))?)
            }
        };
        Ok(Self {
            ends,
            temperature: if greedy { Some(0.0) } else { number("temperature")? },
            // 0 means all there.
            top_k: top_k.filter(|k| *k > 0).map(|k| k as usize),
            top_p: number("top_p")?,
            min_p: number("min_p")?,
            repetition_penalty: number("repetition_penalty")?,
        })
    }

    /// Checks the numbers, for texts that nobody has chosen others for.
    pub(crate) fn validate(&self) -> Result<(), SampleError> {
        let any = Sampler::default();
        Sampler {
            temperature: self.temperature.unwrap_or(any.temperature),
            top_k: self.top_k,
            top_p: self.top_p.unwrap_or(any.top_p),
            min_p: self.min_p.unwrap_or(any.min_p),
        }
        .validate()?;
        Repetition::new(self.repetition_penalty.unwrap_or(1.0)).map(drop)
    }
}

/// The keys of a JSON file; none where there is no file.
fn object(path: &Path) -> anyhow::Result<Map<String, Value>> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
        read => read.with_context(|| path.display().to_string())?,
    };
    let expected = || format!("{}: expected a JSON object", path.display());
    match serde_json::from_slice(&bytes).with_context(expected)? {
        Value::Object(keys) => Ok(keys),
        _ => anyhow::bail!(expected()),
    }
}

/// `eos_token_id`: an id, a list of ids, or nothing.
fn ids(path: &Path, keys: &Map<String, Value>) -> anyhow::Result<Vec<u32>> {
    let Some(value) = keys.get(ENDS).filter(|value| !value.is_null()) else { return Ok(Vec::new()) };
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let found = match value {
        Value::Array(list) => list.iter().map(id).collect(),
        one => id(one).map(|id| vec![id]),
    };
    found.with_context(|| wrong(path, ENDS, "a token id or a list of them", value))
}

fn wrong(path: &Path, key: &str, expected: &str, found: &Value) -> String {
    format!("{}: `{key}` is {found}: expected {expected}", path.display())
}
