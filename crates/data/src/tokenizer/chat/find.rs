//! Finding a template's text.

use std::path::Path;

use serde_json::Value;

use super::super::config;
use crate::{DataError, Result};

const FILE: &str = "chat_template.jinja";
const KEY: &str = "chat_template";

/// Where the folder's template comes from, and its text.
pub(super) fn template(folder: &Path) -> Result<(String, String)> {
    let file = folder.join(FILE);
    match std::fs::read_to_string(&file) {
        Ok(source) => return Ok((file.display().to_string(), source)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(DataError::io(&file, "read")(error)),
    }
    let path = folder.join(config::FILE);
    let keys = config::read(&path)?;
    let source = match keys.get(KEY) {
        None | Some(Value::Null) => return Err(DataError::NoChatTemplate { path: folder.to_path_buf() }),
        Some(Value::String(source)) => Some(source.as_str()),
        Some(value) => default(value),
    };
    match source {
        Some(source) => Ok((format!("{}: `{KEY}`", path.display()), source.to_owned())),
        None => Err(DataError::JsonKey {
            path,
            key: KEY.to_owned(),
            expected: "a string, or a list of objects with `name` and `template`, one of them named default",
            found: config::short(&keys[KEY]),
        }),
    }
}

/// Of a list of named templates the one called `default`, or the only one.
fn default(list: &Value) -> Option<&str> {
    let list = list.as_array()?;
    let named = list.iter().find(|entry| entry["name"] == "default");
    named.or_else(|| list.first().filter(|_| list.len() == 1))?.get("template")?.as_str()
}

/// The template without `{% generation %}` and `{% endgeneration %}`, which mark what training counts; what they say of
/// white space stays.
pub(super) fn without_generation_marks(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let (tag, after) = (&rest[start..start + length + 2], &rest[start + length + 2..]);
        text.push_str(&rest[..start]);
        let inner = &tag[2..tag.len() - 2];
        match inner.trim_matches(['-', '+']).trim() {
            "generation" => text.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => text.push_str(&tag.replace("endgeneration", "endif")),
            _ => text.push_str(tag),
        }
        rest = after;
    }
    text.push_str(rest);
    text
}
