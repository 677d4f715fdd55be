//! The limits that an engine keeps.

use crate::{lookup::Lookup, request::RequestError};

/// The limits that an engine keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Pages of the cache.
    pub pages: usize,
    /// Tokens whose rows a page holds.
    pub page_size: usize,
    /// Longest sequence, prompt and new tokens together.
    pub max_len: usize,
    /// Token ids there are.
    pub vocab_size: usize,
    /// Tokens that go through the model in a step at most.
    pub max_batch_tokens: usize,
    /// Requests that share a step at most.
    pub max_running: usize,
    /// Rows of logits that a step makes at most: bounds the memory of scoring prompts and of guesses.
    pub max_logits: usize,
    /// Whether a prompt may use pages that another request computed.
    pub prefix_cache: bool,
    /// How the next tokens are guessed, if they are.
    pub lookup: Option<Lookup>,
}

/// Limits that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} is {found}: expected {expected}")]
pub struct ConfigError {
    /// The limit.
    pub key: &'static str,
    /// What it may be.
    pub expected: String,
    /// What it is.
    pub found: usize,
}

impl EngineConfig {
    /// Tokens that the longest request may have: no longer than the model allows and than all pages hold.
    pub fn capacity(&self) -> usize {
        self.max_len.min(self.pages.saturating_mul(self.page_size))
    }

    /// Checks whether a request can be served at all.
    ///
    /// # Errors
    /// Says why not.
    pub fn check(&self, prompt: &[u32], max_tokens: usize) -> Result<(), RequestError> {
        if prompt.is_empty() {
            return Err(RequestError::EmptyPrompt);
        }
        // A prompt that is to be continued leaves room for a token.
        let limit = self.capacity() - usize::from(max_tokens > 0);
        if prompt.len() > limit {
            return Err(RequestError::TooLong { tokens: prompt.len(), limit });
        }
        match prompt.iter().find(|token| **token as usize >= self.vocab_size) {
            None => Ok(()),
            Some(token) => Err(RequestError::Token { token: *token, vocab_size: self.vocab_size }),
        }
    }

    /// Checks the limits against each other.
    ///
    /// # Errors
    /// Names the first that cannot be kept.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let at_least = |key, found: usize, least: usize| {
            let expected = format!("at least {least}");
            if found < least { Err(ConfigError { key, expected, found }) } else { Ok(()) }
        };
        at_least("page_size", self.page_size, 1)?;
        at_least("pages", self.pages, 1)?;
        at_least("max_len", self.max_len, 2)?;
        at_least("vocab_size", self.vocab_size, 1)?;
        at_least("max_running", self.max_running, 1)?;
        // Each running request needs a token and a row of logits in every step, and scoring needs one more to get on.
        at_least("max_batch_tokens", self.max_batch_tokens, self.max_running)?;
        at_least("max_logits", self.max_logits, self.max_running + 1)?;
        if self.pages > u32::MAX as usize {
            let expected = format!("at most {}", u32::MAX);
            return Err(ConfigError { key: "pages", expected, found: self.pages });
        }
        self.lookup.map_or(Ok(()), |lookup| {
            at_least("lookup.tokens", lookup.tokens, 1)?;
            at_least("lookup.shortest", lookup.shortest, 1)?;
            at_least("lookup.longest", lookup.longest, lookup.shortest)
        })
    }
}
