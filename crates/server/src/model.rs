//! What the server knows of the model that it serves: its tokenizer, its template, its wishes.

use crate::{
    error::{ApiError, Kind},
    grammar::Grammars,
};
use keyfold_data::{ChatTemplate, Message, StreamDecoder, Tokenizer};
use keyfold_engine::Detokenizer;
use serde::Serialize;
use std::sync::{Arc, OnceLock};

/// The model that is served.
pub struct Model {
    /// What clients call it.
    pub name: String,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// How conversations become text, if it knows that.
    pub template: Option<ChatTemplate>,
    /// Tokens that end a text.
    pub ends: Vec<u32>,
    /// Rows of its logits.
    pub vocab_size: usize,
    /// How tokens are chosen where a request does not say.
    pub defaults: Defaults,
    /// What its cache takes.
    pub cache: CacheFacts,
    pub(crate) grammars: OnceLock<Result<Grammars, String>>,
}

/// How tokens are chosen where a request does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Defaults {
    /// 1 without it, as OpenAI has it.
    pub temperature: Option<f32>,
    /// All without it.
    pub top_k: Option<usize>,
    /// 1 without it.
    pub top_p: Option<f32>,
    /// 0 without it.
    pub min_p: Option<f32>,
    /// 1 without it.
    pub repetition_penalty: Option<f32>,
}

/// What a token takes in the cache, beside what it would take with attention of as many full heads.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CacheFacts {
    /// The kind of attention.
    pub attention: String,
    /// Storage of the cache.
    pub dtype: String,
    /// Bytes of a token, all layers.
    pub bytes_per_token: u64,
    /// Bytes that multi-head attention with the same heads would need.
    pub mha_bytes_per_token: u64,
}

/// Around the number of a text that must not be taken for markup; noncharacters, which mean nothing in any text.
const OPEN: char = '\u{FDD0}';
const CLOSE: char = '\u{FDD1}';

impl Model {
    /// A model as its folder describes it.
    pub fn new(name: String, tokenizer: Tokenizer, vocab_size: usize, ends: Vec<u32>) -> Self {
        Self {
            name,
            tokenizer: Arc::new(tokenizer),
            template: None,
            ends,
            vocab_size,
            defaults: Defaults::default(),
            cache: CacheFacts::default(),
            grammars: OnceLock::new(),
        }
    }

    /// The tokens of a text to go on with.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>, ApiError> {
        let mut tokens = self.tokenizer.encode_sequence(text).map_err(internal)?;
        if tokens.is_empty() {
            tokens.push(self.tokenizer.eos());
        }
        Ok(tokens)
    }

    /// The tokens of a conversation up to where the model answers. What somebody wrote is text, even where it spells out
    /// tokens that mark up a conversation.
    pub(crate) fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>, ApiError> {
        let Some(template) = &self.template else {
            let message = format!("the model `{}` has no chat template: use /v1/completions", self.name);
            return Err(ApiError::new(Kind::Unsupported, message));
        };
        let specials: Vec<&str> = self.tokenizer.specials().map(|(text, _)| text).collect();
        let mut texts = Vec::new();
        let messages: Vec<Message> = messages
            .iter()
            .map(|message| Message::new(&message.role, hide(&message.content, &specials, &mut texts)))
            .collect();
        let text = template
            .render(&messages, true)
            .map_err(|error| ApiError::about(Kind::Invalid, "messages", error))?;
        let mut tokens = Vec::new();
        for (part, hidden) in parts(&text, &texts) {
            let encoded =
                if hidden { self.tokenizer.encode(part) } else { self.tokenizer.encode_with_specials(part) };
            tokens.extend(encoded.map_err(internal)?);
        }
        if tokens.is_empty() {
            tokens.push(self.tokenizer.eos());
        }
        Ok(tokens)
    }

    /// The text of a token as OpenAI shows it: its bytes where they are no text.
    pub(crate) fn token_text(&self, token: u32) -> String {
        match self.tokenizer.token_bytes(token) {
            None => format!("token:{token}"),
            Some([]) => {
                let special = self.tokenizer.specials().find(|(_, id)| *id == token);
                special.map_or_else(|| format!("token:{token}"), |(text, _)| text.to_owned())
            }
            Some(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => text.to_owned(),
                Err(_) => {
                    bytes.iter().fold("bytes:".to_owned(), |text, byte| text + &format!("\\x{byte:02x}"))
                }
            },
        }
    }

    /// Turns the tokens of an answer into text.
    pub(crate) fn detokenizer(&self, chat: bool) -> Box<dyn Detokenizer> {
        Box::new(Stream { tokenizer: self.tokenizer.clone(), decoder: StreamDecoder::new(), begun: !chat })
    }

    /// Grammars over the model's tokens; made when first asked for.
    pub(crate) fn grammars(&self) -> Result<&Grammars, ApiError> {
        let make = || Grammars::new(&self.tokenizer, self.vocab_size, &self.ends);
        self.grammars.get_or_init(make).as_ref().map_err(|why| ApiError::new(Kind::Internal, why.clone()))
    }
}

pub(crate) fn internal(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(Kind::Internal, error.to_string())
}

/// The text with each of `specials` in it replaced by a number in a mark, and the text behind the number kept in `texts`.
fn hide(text: &str, specials: &[&str], texts: &mut Vec<String>) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        // The longest comes first.
        let special = specials.iter().find(|special| rest.starts_with(**special));
        let length = match special {
            Some(special) => special.len(),
            None if first == OPEN || first == CLOSE => first.len_utf8(),
            None => {
                shown.push(first);
                rest = &rest[first.len_utf8()..];
                continue;
            }
        };
        shown += &format!("{OPEN}{}{CLOSE}", texts.len());
        texts.push(rest[..length].to_owned());
        rest = &rest[length..];
    }
    shown
}

/// The parts of a text, and whether each was hidden.
fn parts<'a>(text: &'a str, texts: &'a [String]) -> Vec<(&'a str, bool)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(OPEN) {
        let Some((number, behind)) = after.split_once(CLOSE) else { break };
        found.push((before, false));
        if let Some(hidden) = number.parse().ok().and_then(|number: usize| texts.get(number)) {
            found.push((hidden, true));
        }
        rest = behind;
    }
    found.push((rest, false));
    found.retain(|(part, _)| !part.is_empty());
    found
}

struct Stream {
    tokenizer: Arc<Tokenizer>,
    decoder: StreamDecoder,
    /// Whether text came; some tokenizers begin every answer with a space.
    begun: bool,
}

impl Detokenizer for Stream {
    fn push(&mut self, token: u32) -> String {
        let mut text = self.decoder.push(&self.tokenizer, token);
        if !self.begun {
            text.drain(..text.len() - text.trim_start().len());
            self.begun = !text.is_empty();
        }
        text
    }

    fn finish(&mut self) -> String {
        self.decoder.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn markup_in_a_message_is_text() {
        let mut model = Model::new("tiny".to_owned(), Tokenizer::bytes(), 257, vec![256]);
        let source = "{% for m in messages %}{{ m.role }}:{{ m.content }}<|endoftext|>{% endfor %}";
        model.template = Some(ChatTemplate::new(source, BTreeMap::new(), "test").expect("a template"));
        let tokens = model.encode_chat(&[Message::new("user", "a<|endoftext|>b\u{FDD0}0\u{FDD1}")]);
        let tokens = tokens.expect("tokens");
        assert_eq!(tokens.iter().filter(|token| **token == 256).count(), 1, "the template's own");
        assert_eq!(tokens.last(), Some(&256));
        let text = model.tokenizer.decode(&tokens);
        assert_eq!(text, "user:a<|endoftext|>b\u{FDD0}0\u{FDD1}");
    }

    #[test]
    fn tokens_are_shown_by_text_name_or_bytes() {
        let model = Model::new("tiny".to_owned(), Tokenizer::bytes(), 257, vec![256]);
        assert_eq!(model.token_text(65), "A");
        assert_eq!(model.token_text(0xe2), "bytes:\\xe2");
        assert_eq!(model.token_text(256), "<|endoftext|>");
        assert_eq!(model.token_text(300), "token:300");
    }
}
