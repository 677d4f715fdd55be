//! What requests for texts have in common.

use super::fields::{Fields, wrong};
use crate::{
    config::Limits,
    error::{ApiError, Kind},
    model::Model,
};
use keyfold_engine::{REPETITION_PENALTY, Sampling};
use serde_json::{Value, json};

/// What a text is to be like.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// What the client calls the model.
    pub model: Option<String>,
    /// Texts for each prompt.
    pub n: usize,
    /// Texts that end a text.
    pub stop: Vec<String>,
    /// Seed of the choices; a random one without it.
    pub seed: Option<u64>,
    /// Whether the answer comes as it is made.
    pub stream: bool,
    /// Whether the stream ends with the tokens' count.
    pub include_usage: bool,
    /// Whether tokens that end a text do not.
    pub ignore_eos: bool,
    /// What the text must be like.
    pub format: Format,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    frequency_penalty: f32,
    presence_penalty: f32,
    logit_bias: Vec<(u32, f32)>,
}

/// What the text must be like.
#[derive(Clone, Debug, PartialEq)]
pub enum Format {
    /// Any text.
    Text,
    /// JSON of a schema.
    Schema(Value),
}

/// Tokens that a bias can be given to.
const MOST_BIASES: usize = 1024;
/// Bytes of a stop string.
const LONGEST_STOP: usize = 1024;

/// Fields without effect: they tell OpenAI who asks, where to account or keep it, or what a cache may be keyed by.
const IGNORED: [&str; 7] = [
    "user",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "store",
];

impl Options {
    pub(super) fn take(fields: &mut Fields, limits: &Limits) -> Result<Self, ApiError> {
        fields.ignore(&IGNORED);
        let stream = fields.flag("stream")?;
        let mut include_usage = false;
        if let Some(mut options) = fields.object("stream_options")? {
            if !stream {
                return Err(ApiError::invalid("stream_options", "expected only with `stream`: true"));
            }
            include_usage = options.flag("include_usage")?;
            // Padding against observers of encrypted streams; there is none here.
            options.ignore(&["include_obfuscation"]);
            options.finish()?;
        }
        let stop = fields.texts("stop")?;
        if stop.len() > limits.stop_strings {
            let message = format!("expected at most {} strings, found {}", limits.stop_strings, stop.len());
            return Err(ApiError::invalid("stop", message));
        }
        if let Some(long) = stop.iter().find(|text| text.len() > LONGEST_STOP) {
            let message =
                format!("expected strings of at most {LONGEST_STOP} bytes, found one of {}", long.len());
            return Err(ApiError::invalid("stop", message));
        }
        Ok(Self {
            model: fields.text("model")?,
            n: fields.count("n", 1..=limits.choices)?.unwrap_or(1),
            stop,
            seed: fields.seed("seed")?,
            stream,
            include_usage,
            ignore_eos: fields.flag("ignore_eos")?,
            format: format(fields, limits)?,
            temperature: fields.number("temperature", 0.0..=2.0)?,
            top_p: fields.number("top_p", f32::MIN_POSITIVE..=1.0)?,
            top_k: fields.count("top_k", 0..=usize::MAX)?,
            min_p: fields.number("min_p", 0.0..=1.0)?,
            repetition_penalty: fields.number("repetition_penalty", REPETITION_PENALTY)?,
            frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0),
            presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0),
            logit_bias: biases(fields)?,
        })
    }

    /// Checks what depends on the model.
    pub(super) fn check(&self, model: &Model) -> Result<(), ApiError> {
        if let Some(name) = self.model.as_ref().filter(|name| **name != model.name) {
            let message = format!("there is no model `{name}`: this server has `{}`", model.name);
            return Err(ApiError {
                param: Some("model".to_owned()),
                ..ApiError::new(Kind::NoModel, message)
            });
        }
        match self.logit_bias.iter().find(|(token, _)| *token as usize >= model.vocab_size) {
            None => Ok(()),
            Some((token, _)) => {
                let message = format!("there is no token {token}: expected ids below {}", model.vocab_size);
                Err(ApiError::invalid("logit_bias", message))
            }
        }
    }

    /// How the tokens of the text with this number are chosen.
    pub(super) fn sampling(
        &self,
        model: &Model,
        seed: u64,
        number: usize,
        logprobs: Option<usize>,
    ) -> Sampling {
        let defaults = &model.defaults;
        Sampling {
            temperature: self.temperature.or(defaults.temperature).unwrap_or(1.0),
            // 0 means all.
            top_k: self.top_k.or(defaults.top_k).filter(|k| *k > 0),
            top_p: self.top_p.or(defaults.top_p).unwrap_or(1.0),
            min_p: self.min_p.or(defaults.min_p).unwrap_or(0.0),
            repetition_penalty: self.repetition_penalty.or(defaults.repetition_penalty).unwrap_or(1.0),
            seed: seed.wrapping_add(number as u64),
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            logit_bias: self.logit_bias.clone(),
            logprobs,
        }
    }
}

/// `{"50256": -100}`.
fn biases(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let expected = "an object of token ids with numbers from -100 to 100";
    let map = match fields.take("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(wrong("logit_bias", expected, &other)),
    };
    if map.len() > MOST_BIASES {
        let message = format!("expected at most {MOST_BIASES} tokens, found {}", map.len());
        return Err(ApiError::invalid("logit_bias", message));
    }
    map.into_iter()
        .map(|(token, bias)| {
            let value = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
            match (token.parse(), value) {
                (Ok(token), Some(value)) => Ok((token, value as f32)),
                (Err(_), _) => Err(wrong("logit_bias", expected, &Value::String(token))),
                (_, None) => Err(wrong("logit_bias", expected, &bias)),
            }
        })
        .collect()
}

fn format(fields: &mut Fields, limits: &Limits) -> Result<Format, ApiError> {
    let Some(mut format) = fields.object("response_format")? else { return Ok(Format::Text) };
    let kind = format.text("type")?;
    let found = match kind.as_deref() {
        Some("text") => Format::Text,
        Some("json_object") => Format::Schema(json!({"type": "object"})),
        Some("json_schema") => {
            let missing = |key: &str| ApiError::invalid(key, "expected a JSON schema, found nothing");
            let mut inner =
                format.object("json_schema")?.ok_or_else(|| missing("response_format.json_schema"))?;
            // A schema is always followed strictly.
            inner.ignore(&["name", "description", "strict"]);
            let schema = inner.take("schema").ok_or_else(|| missing("response_format.json_schema.schema"))?;
            inner.finish()?;
            let size = schema.to_string().len();
            if size > limits.schema_bytes {
                let message = format!("expected at most {} bytes, found {size}", limits.schema_bytes);
                return Err(ApiError::invalid("response_format.json_schema.schema", message));
            }
            Format::Schema(schema)
        }
        other => {
            let found = other.map_or(Value::Null, Value::from);
            return Err(wrong("response_format.type", "text, json_object or json_schema", &found));
        }
    };
    format.finish()?;
    Ok(found)
}
