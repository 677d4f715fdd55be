//! What comes into an engine and what goes out.

use std::{fmt, ops::RangeInclusive};

/// Names a request as long as it lives; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub(crate) u64);

impl RequestId {
    /// The name of request `number`, for batches that no engine made.
    pub fn new(number: u64) -> Self {
        Self(number)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A text to go on with.
pub struct Request {
    /// Tokens to go on from; at least one.
    pub prompt: Vec<u32>,
    /// Tokens to make at most; with 0 the prompt is read alone.
    pub max_tokens: usize,
    /// Tokens that end the text.
    pub ends: Vec<u32>,
    /// Texts that end the text; they are not part of it.
    pub stop: Vec<String>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Whether the log-probabilities of the prompt's tokens are wanted.
    pub score_prompt: bool,
    /// What the text must be like.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Turns tokens into text; without it [`Update::text`] stays empty and stop strings never come.
    pub text: Option<Box<dyn Detokenizer>>,
}

/// What [`Sampling::repetition_penalty`] may be.
pub const REPETITION_PENALTY: RangeInclusive<f32> = 0.01..=100.0;

/// How the tokens of a request are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 always takes the likeliest token.
    pub temperature: f32,
    /// Keep this many of the likeliest tokens.
    pub top_k: Option<usize>,
    /// Keep the smallest set of the likeliest tokens that holds this share of the probability.
    pub top_p: f32,
    /// Keep tokens at least this fraction as likely as the likeliest one.
    pub min_p: f32,
    /// Seed of the choices.
    pub seed: u64,
    /// Makes tokens of the prompt and the text less likely: divides their logits above zero and multiplies those below.
    pub repetition_penalty: f32,
    /// Taken from a token's logit for each time that it was made.
    pub frequency_penalty: f32,
    /// Taken from a token's logit once it was made.
    pub presence_penalty: f32,
    /// Added to the logits of tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Report each token's log-probability and those of so many of the likeliest ones.
    pub logprobs: Option<usize>,
}

impl Sampling {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            logprobs: None,
        }
    }
}

/// What the text of a request must be like, token by token.
pub trait Constraint: Send {
    /// Gives tokens that may not come next the logit negative infinity.
    ///
    /// # Errors
    /// When no token may come, or the constraint is too hard to follow.
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String>;

    /// A token was chosen; whether the text is complete with it.
    ///
    /// # Errors
    /// When the token was not allowed.
    fn accept(&mut self, token: u32) -> Result<bool, String>;
}

/// Turns tokens into text, one at a time, never showing half a character.
pub trait Detokenizer: Send {
    /// The text that is complete with this token.
    fn push(&mut self, token: u32) -> String;
    /// What is left at the end.
    fn finish(&mut self) -> String;
}

/// A request that cannot be served, whatever else happens.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// There is nothing to go on from.
    #[error("the prompt has no tokens: expected at least 1")]
    EmptyPrompt,
    /// The prompt leaves no room for a token.
    #[error("the prompt has {tokens} tokens: expected at most {limit}")]
    TooLong {
        /// Its tokens.
        tokens: usize,
        /// Tokens that a prompt may have.
        limit: usize,
    },
    /// The model has no such token.
    #[error("the prompt has the token {token}: expected ids below {vocab_size}")]
    Token {
        /// The id.
        token: u32,
        /// Ids there are.
        vocab_size: usize,
    },
}

/// A token that was made.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Its log-probability, if wanted.
    pub logprobs: Option<Logprobs>,
}

/// What the model thought of a token.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Of the token itself.
    pub token: f32,
    /// The likeliest tokens, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// What a step brought for a request.
#[derive(Debug)]
pub struct Update {
    /// The request.
    pub id: RequestId,
    /// Log-probabilities of the prompt's next tokens, from its second on.
    pub scores: Vec<Logprobs>,
    /// New tokens, without one that ended the text.
    pub tokens: Vec<Token>,
    /// New text; it lags behind the tokens while a character or a stop string may be unfinished.
    pub text: String,
    /// Set once, by the last update.
    pub end: Option<End>,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Why.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them whose rows were in the cache already.
    pub cached_tokens: usize,
    /// Tokens made.
    pub made_tokens: usize,
}

/// Why a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A token or a text came that ends it, or the constraint is fulfilled.
    Stop,
    /// It has as many tokens as it may have.
    Length,
    /// Its next token could not be chosen.
    Failed(String),
}
