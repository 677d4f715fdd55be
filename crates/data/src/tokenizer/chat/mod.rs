//! Chat templates: a conversation as the text that a model was trained to go on from.
//!
//! Templates are Jinja, in the dialect that `transformers` gives them: blocks take their line with them (`trim_blocks`,
//! `lstrip_blocks`), loops can be left, `tojson` writes what Python writes, and `raise_exception` and `strftime_now` are
//! there. `strftime_now` tells the time in UTC.

mod find;
mod json;
mod time;

use std::collections::BTreeMap;
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, Error, ErrorKind};
use serde::{Deserialize, Serialize};

use crate::{DataError, Result};

/// What somebody said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.to_owned(), content: content.into() }
    }
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Special tokens by the names that templates use: `bos_token` and so on.
    tokens: BTreeMap<String, String>,
    /// Where the template comes from, for errors.
    origin: String,
}

const NAME: &str = "chat";
/// Steps that a template may take: far more than any conversation needs, and an endless one ends.
const FUEL: u64 = 50_000_000;

impl ChatTemplate {
    /// The template of a model folder: chat_template.jinja, or `chat_template` in tokenizer_config.json (of several the one
    /// called `default`). Special tokens come from tokenizer_config.json.
    ///
    /// # Errors
    /// When there is none, or it cannot be read or compiled.
    pub fn load(folder: &Path) -> Result<Self> {
        let (origin, source) = find::template(folder)?;
        Self::new(&source, super::config::tokens(&folder.join(super::config::FILE))?, &origin)
    }

    /// The template in `file`, with the special tokens of a model folder.
    ///
    /// # Errors
    /// When it cannot be read or compiled.
    pub fn from_file(file: &Path, folder: &Path) -> Result<Self> {
        let source = std::fs::read_to_string(file).map_err(DataError::io(file, "read"))?;
        let tokens = super::config::tokens(&folder.join(super::config::FILE))?;
        Self::new(&source, tokens, &file.display().to_string())
    }

    /// Compiles a template; `origin` is what errors call it.
    ///
    /// # Errors
    /// A syntax error, with its line.
    pub fn new(source: &str, tokens: BTreeMap<String, String>, origin: &str) -> Result<Self> {
        let mut environment = Environment::new();
        let whitespace = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let failed =
            |error: Error| DataError::ChatTemplate { origin: origin.to_owned(), reason: tell(&error) };
        environment.set_syntax(whitespace.map_err(failed)?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.add_filter("tojson", json::tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", time::strftime_now);
        environment.add_template_owned(NAME, find::without_generation_marks(source)).map_err(failed)?;
        Ok(Self { environment, tokens, origin: origin.to_owned() })
    }

    /// The text of a conversation; with `ask`, up to where the model answers.
    ///
    /// # Errors
    /// When the template refuses the messages, or is wrong.
    pub fn render(&self, messages: &[Message], ask: bool) -> Result<String> {
        let mut context: BTreeMap<&str, Value> =
            self.tokens.iter().map(|(name, text)| (name.as_str(), Value::from(text.as_str()))).collect();
        context.insert("messages", Value::from(Serde(messages)));
        context.insert("add_generation_prompt", Value::from(ask));
        // Templates ask whether these are none before they ask whether they are defined.
        context.insert("tools", Value::from(()));
        context.insert("documents", Value::from(()));
        let failed =
            |error: Error| DataError::ChatTemplate { origin: self.origin.clone(), reason: tell(&error) };
        self.environment.get_template(NAME).and_then(|template| template.render(context)).map_err(failed)
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("origin", &self.origin).finish_non_exhaustive()
    }
}

fn raise_exception(message: String) -> std::result::Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// An error in one line.
fn tell(error: &Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("line {line}: {what}"),
        None => what,
    }
}

#[cfg(test)]
mod tests;
