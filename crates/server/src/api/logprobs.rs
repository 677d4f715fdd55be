//! Log-probabilities in the two forms that OpenAI has.

use crate::model::Model;
use keyfold_engine::Logprobs;
use serde_json::{Map, Value, json};

/// The form of completions: lists side by side, with each token's place in the text.
#[derive(Debug, Default)]
pub(super) struct Lists {
    tokens: Vec<Value>,
    token_logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<Value>,
    offset: usize,
}

impl Lists {
    /// Lists whose first token stands at `offset`, counted in characters.
    pub(super) fn at(offset: usize) -> Self {
        Self { offset, ..Self::default() }
    }

    /// Where the next token stands.
    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Adds a token; the first of a prompt has no log-probability.
    pub(super) fn push(&mut self, model: &Model, token: u32, logprobs: Option<&Logprobs>) {
        let text = model.token_text(token);
        self.text_offset.push(json!(self.offset));
        self.offset += model.tokenizer.token_bytes(token).map_or(0, |bytes| {
            // Characters begin with any byte but those that continue one.
            bytes.iter().filter(|byte| **byte & 0xC0 != 0x80).count()
        });
        self.token_logprobs.push(json!(logprobs.map(|logprobs| logprobs.token)));
        let top = logprobs.map(|logprobs| {
            let mut top = Map::new();
            // The token itself is among them, as OpenAI has it.
            for (id, value) in logprobs.top.iter().copied().chain([(token, logprobs.token)]) {
                // Of several tokens with one text the likeliest counts, which comes first.
                top.entry(model.token_text(id)).or_insert(json!(value));
            }
            top
        });
        self.top_logprobs.push(json!(top.filter(|_| logprobs.is_some_and(|l| !l.top.is_empty()))));
        self.tokens.push(json!(text));
    }

    pub(super) fn json(self) -> Value {
        json!({
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        })
    }
}

/// The form of conversations: an object for each token.
pub(super) fn object(model: &Model, token: u32, logprobs: &Logprobs) -> Value {
    let entry = |token: u32, logprob: f32| {
        let bytes = model.tokenizer.token_bytes(token).filter(|bytes| !bytes.is_empty());
        json!({"token": model.token_text(token), "logprob": logprob, "bytes": bytes})
    };
    let mut object = entry(token, logprobs.token);
    object["top_logprobs"] = logprobs.top.iter().map(|(token, logprob)| entry(*token, *logprob)).collect();
    object
}
