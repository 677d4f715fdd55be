//! A conversation and its cache.

use crate::model_dir::ModelDir;
use keyfold_data::{ChatTemplate, Message, StreamDecoder, Tokenizer};
use keyfold_model::{Cache, Decoder, Request, Stop, generate};
use keyfold_ops::sample::{Rng, Sampler};
use std::{sync::atomic::AtomicBool, time::Duration};

/// How answers are made.
pub(super) struct Options {
    pub(super) sampler: Sampler,
    pub(super) repetition_penalty: f32,
    /// Tokens that end an answer.
    pub(super) ends: Vec<u32>,
    pub(super) max_tokens: usize,
    pub(super) system: Option<String>,
}

/// What an answer took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Answer {
    /// Tokens made.
    pub(super) made: usize,
    /// Tokens of the conversation before it.
    pub(super) prompt: usize,
    /// Those that were in the cache already.
    pub(super) reused: usize,
    pub(super) prefill: Duration,
    pub(super) decode: Duration,
    /// Why it ended, if not by itself.
    pub(super) stopped: Option<&'static str>,
    /// Exchanges that no longer fitted.
    pub(super) forgotten: usize,
}

impl Answer {
    /// Tokens per second after the first one.
    pub(super) fn speed(&self) -> f64 {
        self.made.saturating_sub(1) as f64 / self.decode.as_secs_f64().max(1e-9)
    }
}

/// Sums over all answers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) answers: usize,
    pub(super) made: usize,
    /// Tokens after the first of each answer, which `decode` is the time of.
    pub(super) steps: usize,
    pub(super) decode: Duration,
}

/// A conversation with a model.
pub(super) struct Session<'a> {
    model: &'a ModelDir,
    decoder: &'a Decoder,
    tokenizer: &'a Tokenizer,
    template: &'a ChatTemplate,
    options: Options,
    rng: Rng,
    messages: Vec<Message>,
    cache: Cache,
    /// The tokens whose rows are in `cache`.
    cached: Vec<u32>,
    last: Option<Answer>,
    totals: Totals,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        model: &'a ModelDir,
        decoder: &'a Decoder,
        tokenizer: &'a Tokenizer,
        template: &'a ChatTemplate,
        cache: Cache,
        options: Options,
        rng: Rng,
    ) -> Self {
        let mut session = Self {
            model,
            decoder,
            tokenizer,
            template,
            options,
            rng,
            messages: Vec::new(),
            cache,
            cached: Vec::new(),
            last: None,
            totals: Totals::default(),
        };
        session.reset();
        session
    }

    pub(super) fn cache(&self) -> &Cache {
        &self.cache
    }

    pub(super) fn last(&self) -> Option<Answer> {
        self.last
    }

    pub(super) fn totals(&self) -> Totals {
        self.totals
    }

    /// Forgets all but the system prompt. The cache stays: what the next conversation shares with this one is used.
    pub(super) fn reset(&mut self) {
        self.messages = self.options.system.iter().map(|text| Message::new("system", text)).collect();
    }

    /// Answers what was said; `each` sees the answer in pieces and returns whether to go on;
    /// `interrupt` ends it at any time, also while a long history is read. What is refused was not said.
    pub(super) fn answer(
        &mut self,
        said: &str,
        interrupt: &AtomicBool,
        each: impl FnMut(&str) -> bool,
    ) -> anyhow::Result<Answer> {
        let before = self.messages.clone();
        self.messages.push(Message::new("user", said));
        let answered = self.try_answer(interrupt, each);
        if answered.is_err() {
            self.messages = before;
        }
        answered
    }

    fn try_answer(
        &mut self,
        interrupt: &AtomicBool,
        mut each: impl FnMut(&str) -> bool,
    ) -> anyhow::Result<Answer> {
        let (ids, forgotten) = self.fitting()?;
        let shared = self.cached.iter().zip(&ids).take_while(|(a, b)| a == b).count();
        // The last token's logits are needed, which are not in the cache.
        let reused = shared.min(ids.len() - 1);
        self.cache.truncate(reused);
        self.cached.truncate(reused);
        let Options { sampler, repetition_penalty, ref ends, max_tokens, .. } = self.options;
        let request = Request {
            prompt: &ids[reused..],
            max_tokens,
            ends,
            sampler,
            repetition_penalty,
            history: &ids[..reused],
            interrupt: Some(interrupt),
        };
        let mut text = StreamDecoder::new();
        let mut begun = false;
        let done = generate(self.decoder, &mut self.cache, &request, &mut self.rng, |token| {
            let piece = text.push(self.tokenizer, token);
            // Some tokenizers begin every text with a space.
            let piece = if begun { &piece } else { piece.trim_start() };
            begun |= !piece.is_empty();
            each(piece)
        })?;
        each(&text.finish());
        self.cached = ids.iter().chain(&done.tokens).copied().take(self.cache.len()).collect();
        self.messages.push(Message::new("assistant", self.tokenizer.decode(&done.tokens)));
        let answer = Answer {
            made: done.tokens.len(),
            prompt: ids.len(),
            reused,
            prefill: done.prefill,
            decode: done.decode,
            stopped: match done.stop {
                Stop::EndOfDocument => None,
                Stop::MaxTokens => Some("--max-tokens"),
                Stop::Capacity => Some("no more room; see --context"),
                Stop::Cancelled => Some("stopped"),
            },
            forgotten,
        };
        self.last = Some(answer);
        self.totals.answers += 1;
        self.totals.made += answer.made;
        self.totals.steps += answer.made.saturating_sub(1);
        self.totals.decode += answer.decode;
        Ok(answer)
    }

    /// The conversation as tokens with some room behind it; the oldest exchanges go until it fits. And how many went.
    fn fitting(&mut self) -> anyhow::Result<(Vec<u32>, usize)> {
        let capacity = self.cache.capacity();
        let room = self.options.max_tokens.min(capacity / 4).max(1);
        let mut forgotten = 0;
        loop {
            let text = self.template.render(&self.messages, true)?;
            let mut ids = self.tokenizer.encode_with_specials(&text)?;
            self.model.check_ids(&ids)?;
            if ids.is_empty() {
                ids.push(self.tokenizer.eos());
            }
            if ids.len() + room <= capacity {
                return Ok((ids, forgotten));
            }
            let first = usize::from(self.messages.first().is_some_and(|message| message.role == "system"));
            if first + 2 >= self.messages.len() {
                anyhow::ensure!(
                    ids.len() <= capacity,
                    "this takes {} tokens: expected at most {capacity} (see --context)",
                    ids.len()
                );
                return Ok((ids, forgotten));
            }
            self.messages.drain(first..first + 2);
            forgotten += 1;
        }
    }
}
