//! The fields of a request's JSON object, taken one by one: each has a type, and none is left over.

use crate::error::{ApiError, Kind};
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// The fields of an object that were not taken yet.
pub(super) struct Fields {
    /// Where the object stands, for errors: empty, or a path with a dot at its end.
    place: String,
    map: Map<String, Value>,
}

impl Fields {
    /// Reads an object.
    pub(super) fn read(body: &[u8]) -> Result<Self, ApiError> {
        let value = serde_json::from_slice(body).map_err(|error| {
            let what = match std::str::from_utf8(body) {
                Err(error) => format!("the body is not UTF-8: {error}"),
                Ok(_) => format!("the body is not JSON: {error}"),
            };
            ApiError::new(Kind::Invalid, what)
        })?;
        match value {
            Value::Object(map) => Ok(Self { place: String::new(), map }),
            other => Err(ApiError::new(
                Kind::Invalid,
                format!("the body is {}: expected an object", short(&other)),
            )),
        }
    }

    /// The fields of a value within.
    pub(super) fn of(place: &str, value: Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self { place: format!("{place}."), map }),
            other => Err(wrong(place, "an object", &other)),
        }
    }

    pub(super) fn path(&self, key: &str) -> String {
        format!("{}{key}", self.place)
    }

    /// A field as it is; null is none.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key).filter(|value| !value.is_null())
    }

    pub(super) fn text(&mut self, key: &str) -> Result<Option<String>, ApiError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(&self.path(key), "a string", &other)),
        }
    }

    pub(super) fn flag(&mut self, key: &str) -> Result<bool, ApiError> {
        match self.take(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(wrong(&self.path(key), "true or false", &other)),
        }
    }

    pub(super) fn number(&mut self, key: &str, range: RangeInclusive<f32>) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let number = value.as_f64().map(|number| number as f32).filter(|number| range.contains(number));
        let expected = || format!("a number from {} to {}", range.start(), range.end());
        number.map(Some).ok_or_else(|| wrong(&self.path(key), &expected(), &value))
    }

    pub(super) fn count(
        &mut self,
        key: &str,
        range: RangeInclusive<usize>,
    ) -> Result<Option<usize>, ApiError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
        let expected = || match *range.end() {
            usize::MAX => format!("a whole number, at least {}", range.start()),
            end => format!("a whole number from {} to {end}", range.start()),
        };
        let number = number.filter(|number| range.contains(number));
        number.map(Some).ok_or_else(|| wrong(&self.path(key), &expected(), &value))
    }

    /// A seed: any whole number of 64 bits.
    pub(super) fn seed(&mut self, key: &str) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let seed = value.as_u64().or_else(|| value.as_i64().map(|seed| seed as u64));
        seed.map(Some).ok_or_else(|| wrong(&self.path(key), "a whole number of 64 bits", &value))
    }

    /// An object within.
    pub(super) fn object(&mut self, key: &str) -> Result<Option<Self>, ApiError> {
        self.take(key).map(|value| Self::of(&self.path(key), value)).transpose()
    }

    /// A string or a list of strings.
    pub(super) fn texts(&mut self, key: &str) -> Result<Vec<String>, ApiError> {
        let expected = "a string or a list of strings";
        match self.take(key) {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![text]),
            Some(Value::Array(list)) => list
                .into_iter()
                .map(|value| match value {
                    Value::String(text) => Ok(text),
                    other => Err(wrong(&self.path(key), expected, &other)),
                })
                .collect(),
            Some(other) => Err(wrong(&self.path(key), expected, &other)),
        }
    }

    /// Takes fields that have no effect here, whatever they say.
    pub(super) fn ignore(&mut self, keys: &[&str]) {
        for key in keys {
            self.map.remove(*key);
        }
    }

    /// Refuses a field unless it says nothing, or what is so anyway.
    pub(super) fn refuse(&mut self, key: &str, harmless: &[Value], why: &str) -> Result<(), ApiError> {
        match self.take(key) {
            None => Ok(()),
            Some(value) if harmless.contains(&value) => Ok(()),
            Some(_) => Err(ApiError::about(Kind::Unsupported, &self.path(key), why)),
        }
    }

    /// Refuses what is left.
    pub(super) fn finish(self) -> Result<(), ApiError> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(key) => {
                let key = short(&Value::String(self.path(key)));
                Err(ApiError::about(
                    Kind::Unsupported,
                    key.trim_matches('"'),
                    "this server knows no such field",
                ))
            }
        }
    }
}

pub(super) fn wrong(place: &str, expected: &str, found: &Value) -> ApiError {
    ApiError::invalid(place, format_args!("expected {expected}, found {}", short(found)))
}

/// A value for an error text.
fn short(value: &Value) -> String {
    match value {
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(_) => "an object".to_owned(),
        other => {
            let text = other.to_string();
            match text.char_indices().nth(60) {
                Some((at, _)) => format!("{}...", &text[..at]),
                None => text,
            }
        }
    }
}
