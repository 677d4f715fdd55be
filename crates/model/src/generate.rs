//! Generating text from a decoder.

use crate::{cache::Cache, decoder::Decoder};
use keyfold_ops::sample::{Choice, Repetition, Rng, SampleError, Sampler};
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
    /// Time to get ready for the tokens after the first: a GPU records a step when the cache has none from before.
    pub ready: Duration,
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
    let mut choice = Choice { sampler, rng: *rng, repetition };
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
    let mut logits = logits.to_vec();
    let prefill = start.elapsed();

    let mut tokens = Vec::new();
    let (mut ready, mut decode) = (Duration::ZERO, Instant::now());
    // What becomes of a token; why to stop with it.
    let mut take = |token: u32, tokens: &mut Vec<u32>| {
        if ends.contains(&token) {
            return Some(Stop::EndOfDocument);
        }
        tokens.push(token);
        if !each(token) {
            return Some(Stop::Cancelled);
        }
        (tokens.len() >= max_tokens).then_some(Stop::MaxTokens)
    };
    let mut begin = || {
        if interrupted() {
            return Ok(Some(Stop::Cancelled));
        }
        if max_tokens == 0 {
            return Ok(Some(Stop::MaxTokens));
        }
        let token = choice.choose(&mut logits)?;
        *rng = choice.rng;
        Ok(take(token, &mut tokens))
    };
    let mut stop = begin()?;
    if stop.is_none() && cache.len() == cache.capacity() {
        stop = Some(Stop::Capacity);
    }
    if let Some(stop) = stop {
        return Ok(Generation { tokens, stop, prefill, ready, decode: decode.elapsed() });
    }
    let (len, room) = (cache.len(), cache.capacity() - cache.len());
    let last = [tokens[0]];
    let (chunk, memory) = cache.append(&last, 1);
    let mut decoding = decoder.decode(&[chunk], vec![choice.clone()], memory)?;
    ready = decode.elapsed();
    decode = Instant::now();
    // Steps whose tokens were read: their rows are the cache's.
    let mut steps = 0;
    let stop = loop {
        if interrupted() {
            break Ok(Stop::Cancelled);
        }
        if steps == room {
            break Ok(Stop::Capacity);
        }
        let most = room.min(max_tokens - 1) - steps;
        while decoding.ahead() < decoding.lead().min(most) {
            decoding.step();
        }
        let chosen = decoding.read().and_then(|chosen| chosen.first().copied());
        steps += 1;
        let token = match chosen {
            Some(Ok(token)) => token,
            Some(Err(error)) => break Err(error),
            None => break Ok(Stop::MaxTokens),
        };
        choice.chosen(token);
        *rng = choice.rng;
        if let Some(stop) = take(token, &mut tokens) {
            break Ok(stop);
        }
    };
    let decode = decode.elapsed();
    drop(decoding);
    cache.truncate(len);
    // Steps beyond these were in vain; their rows are nobody's.
    cache.append(&tokens[..steps], 0);
    Ok(Generation { tokens, stop: stop?, prefill, ready, decode })
}
