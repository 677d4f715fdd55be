//! Reading keys of a `config.json`, with errors that name them.

use crate::error::ConfigError;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The top level of a `config.json`.
pub(super) struct Keys<'a>(&'a Map<String, Value>);

impl<'a> Keys<'a> {
    pub(super) fn new(json: &'a Value) -> Result<Self, ConfigError> {
        json.as_object()
            .map(Self)
            .ok_or_else(|| ConfigError::value("config.json", "a JSON object", kind(json)))
    }

    /// All keys.
    pub(super) fn all(&self) -> &'a Map<String, Value> {
        self.0
    }

    /// A key that must be there.
    pub(super) fn required<T: DeserializeOwned>(&self, key: &str) -> Result<T, ConfigError> {
        self.optional(key)?.ok_or_else(|| ConfigError::Missing {
            key: key.to_owned(),
            expected: format!("a {}", expected::<T>()),
        })
    }

    /// A key that may be absent or null.
    pub(super) fn optional<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, ConfigError> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => T::deserialize(value)
                .map(Some)
                .map_err(|_| ConfigError::value(key, format!("a {}", expected::<T>()), value)),
        }
    }

    /// Fails unless the key is absent, null or one of `accepted`: what it would switch on is not supported.
    pub(super) fn only(&self, key: &str, accepted: &[Value]) -> Result<(), ConfigError> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(()),
            Some(value) if accepted.contains(value) => Ok(()),
            Some(value) => {
                let accepted: Vec<String> = accepted.iter().map(Value::to_string).collect();
                Err(ConfigError::value(key, format!("one of {}", accepted.join(", ")), value))
            }
        }
    }

    /// An object inside this one, if it is there.
    pub(super) fn nested(&self, key: &str) -> Result<Option<Keys<'a>>, ConfigError> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_object() {
                Some(object) => Ok(Some(Keys(object))),
                None => Err(ConfigError::value(key, "a JSON object", kind(value))),
            },
        }
    }
}

fn expected<T>() -> &'static str {
    let name = std::any::type_name::<T>();
    match name {
        "usize" => "whole number",
        "f32" | "f64" => "number",
        "bool" => "true or false",
        _ if name.ends_with("String") => "text",
        _ => "valid value",
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
