//! Generating text from a decoder.

use crate::{cache::Cache, decoder::Decoder};
use keyfold_ops::sample::{Repetition, Rng, SampleError, Sampler};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A token that ends a document came.
    EndOfDocument,
    /// As many tokens as asked for were made.
    MaxTokens,
    /// The cache is full.
    Capacity,
    /// The caller asked to stop.
    Cancelled,
}

/// What a generation did.
#[derive(Clone, Debug)]
pub struct Generation {
    /// The tokens made, without the one that ended the document.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub stop: Stop,
    /// Time for the prompt.
    pub prefill: Duration,
    /// Time for the tokens after the first.
    pub decode: Duration,
}

impl Generation {
    /// Tokens per second after the first one.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens.len().saturating_sub(1) as f64 / self.decode.as_secs_f64().max(1e-9)
    }
}

/// What to generate.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Tokens to go on from; at least one.
    pub prompt: &'a [u32],
    /// Tokens to make at most.
    pub max_tokens: usize,
    /// Tokens that end the generation.
    pub ends: &'a [u32],
    /// How tokens are chosen.
    pub sampler: Sampler,
    /// Penalty of tokens that came before ([`Repetition`]); 1 for none.
    pub repetition_penalty: f32,
    /// Tokens before the prompt that the cache holds already: they came before too.
    pub history: &'a [u32],
    /// Ends the generation when it becomes true, also within a long prompt.
    pub interrupt: Option<&'a AtomicBool>,
}

/// Appends the prompt to `cache` and generates; `each` sees every token as it is made and returns whether to go on.
///
/// # Errors
/// When the logits are not finite, or a number in the request is out of range.
///
/// # Panics
/// When the prompt is empty or does not fit the cache.
pub fn generate(
    decoder: &Decoder,
    cache: &mut Cache,
    request: &Request<'_>,
    rng: &mut Rng,
    mut each: impl FnMut(u32) -> bool,
) -> Result<Generation, SampleError> {
    let start = Instant::now();
    let Request { prompt, max_tokens, ends, sampler, repetition_penalty, history, interrupt } = *request;
    sampler.validate()?;
    let mut repetition = Repetition::new(repetition_penalty)?;
    repetition.see(history);
    repetition.see(prompt);
    let interrupted = || interrupt.is_some_and(|flag| flag.load(Ordering::Relaxed));
    let size = decoder.chunk_tokens();
    let (first, rest) = prompt.split_at(prompt.len().min(size));
    let mut logits = decoder.step(first, cache);
    for chunk in rest.chunks(size) {
        if interrupted() {
            break;
        }
        logits = decoder.step(chunk, cache);
    }
    let prefill = start.elapsed();
    let start = Instant::now();
    let mut tokens = Vec::new();
    let stop = loop {
        if interrupted() {
            break Stop::Cancelled;
        }
        if tokens.len() >= max_tokens {
            break Stop::MaxTokens;
        }
        let mut row = logits.to_vec();
        repetition.apply(&mut row);
        let token = sampler.sample(&row, rng)?;
        repetition.see(&[token]);
        if ends.contains(&token) {
            break Stop::EndOfDocument;
        }
        tokens.push(token);
        if !each(token) {
            break Stop::Cancelled;
        }
        if tokens.len() >= max_tokens {
            break Stop::MaxTokens;
        }
        if cache.len() == cache.capacity() {
            break Stop::Capacity;
        }
        logits = decoder.step(&[token], cache);
    };
    Ok(Generation { tokens, stop, prefill, decode: start.elapsed() })
}
