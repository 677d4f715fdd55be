//! Keys of tokenizer_config.json.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::{DataError, Result};

pub(super) const FILE: &str = "tokenizer_config.json";

/// Keys whose values are special tokens.
const TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The file's keys; none where there is no file.
///
/// # Errors
/// A file that cannot be read or is no JSON object.
pub(super) fn read(path: &Path) -> Result<Map<String, Value>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(error) => return Err(DataError::io(path, "read")(error)),
    };
    let wrong =
        |found: String| DataError::Json { path: path.to_path_buf(), expected: "a JSON object", found };
    match serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))? {
        Value::Object(keys) => Ok(keys),
        other => Err(wrong(short(&other))),
    }
}

/// The text of the special token `key`.
pub(super) fn token(path: &Path, key: &str) -> Result<Option<String>> {
    token_of(path, &read(path)?, key)
}

/// The texts of all special tokens, by key.
pub(super) fn tokens(path: &Path) -> Result<BTreeMap<String, String>> {
    let keys = read(path)?;
    let mut found = BTreeMap::new();
    for key in TOKENS {
        if let Some(text) = token_of(path, &keys, key)? {
            found.insert(key.to_owned(), text);
        }
    }
    Ok(found)
}

/// A token is a string, or an object with `content`.
fn token_of(path: &Path, keys: &Map<String, Value>, key: &str) -> Result<Option<String>> {
    let Some(value) = keys.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
    let text = value.as_str().or_else(|| value.get("content")?.as_str());
    text.map(|text| Some(text.to_owned())).ok_or_else(|| DataError::JsonKey {
        path: path.to_path_buf(),
        key: key.to_owned(),
        expected: "a string or an object with a string `content`",
        found: short(value),
    })
}

/// A value for an error text.
pub(super) fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}
