//! Choosing tokens: penalties and biases on logits, then the sampler that all commands share.

use keyfold_engine::{Constraint, Failure, Logprobs, Sampling, Token};
use keyfold_ops::sample::{Choice, Repetition, Rng, SampleError, Sampler};
use std::{cmp::Ordering, collections::HashMap};

/// What is remembered from token to token of a request.
pub struct SamplerState {
    sampler: Sampler,
    rng: Rng,
    /// An error ends the request when its first token is to be chosen.
    repetition: Result<Repetition, SampleError>,
    frequency_penalty: f32,
    presence_penalty: f32,
    bias: Vec<(u32, f32)>,
    /// How often each token was made, if that matters.
    counts: HashMap<u32, u32>,
    logprobs: Option<usize>,
    constraint: Option<Box<dyn Constraint>>,
    changed: Vec<f32>,
}

impl SamplerState {
    pub(crate) fn new(prompt: &[u32], sampling: &Sampling, constraint: Option<Box<dyn Constraint>>) -> Self {
        let mut repetition = Repetition::new(sampling.repetition_penalty);
        if let Ok(repetition) = &mut repetition {
            repetition.see(prompt);
        }
        Self {
            repetition,
            sampler: Sampler {
                temperature: sampling.temperature,
                top_k: sampling.top_k,
                top_p: sampling.top_p,
                min_p: sampling.min_p,
            },
            rng: Rng::new(sampling.seed),
            frequency_penalty: sampling.frequency_penalty,
            presence_penalty: sampling.presence_penalty,
            bias: sampling.logit_bias.clone(),
            counts: HashMap::new(),
            logprobs: sampling.logprobs,
            constraint,
            changed: Vec::new(),
        }
    }

    /// Likeliest tokens to tell with each token.
    pub(crate) fn top_logprobs(&self) -> usize {
        self.logprobs.unwrap_or(0)
    }

    /// How the `ahead`-th token from here is chosen, if logits and random numbers are all it takes: where tokens lie between,
    /// there may be no penalty.
    pub(crate) fn choice(&self, ahead: usize) -> Option<Choice> {
        let plain = self.frequency_penalty == 0.0
            && self.presence_penalty == 0.0
            && self.bias.is_empty()
            && self.constraint.is_none()
            && self.logprobs.is_none()
            && self.sampler.validate().is_ok();
        let repetition = self.repetition.as_ref().ok().filter(|repetition| ahead == 0 || repetition.is_off());
        let mut choice = Choice {
            sampler: self.sampler,
            rng: self.rng,
            repetition: repetition.filter(|_| plain)?.clone(),
        };
        if self.sampler.takes_number() {
            for _ in 0..ahead {
                choice.rng.next_u64();
            }
        }
        Some(choice)
    }

    /// A token was chosen elsewhere as [`SamplerState::choice`] says.
    pub(crate) fn chosen(&mut self, drawn: Result<u32, SampleError>) -> Result<(Token, bool), Failure> {
        let id = drawn.map_err(|error| Failure(error.to_string()))?;
        if self.sampler.takes_number() {
            self.rng.next_u64();
        }
        if let Ok(repetition) = &mut self.repetition {
            repetition.see(&[id]);
        }
        Ok((Token { id, logprobs: None }, false))
    }

    /// The next token, and whether it fulfils the constraint.
    ///
    /// # Shapes
    /// - logits: `[vocabulary]`
    pub(crate) fn choose(&mut self, logits: &[f32]) -> Result<(Token, bool), Failure> {
        let repetition = self.repetition.as_ref().map_err(|error| Failure(error.to_string()))?;
        let penalised = self.frequency_penalty != 0.0 || self.presence_penalty != 0.0;
        let changed = penalised || !repetition.is_off() || !self.bias.is_empty() || self.constraint.is_some();
        let id = if changed {
            self.change(logits)?;
            self.sampler.sample(&self.changed, &mut self.rng)
        } else {
            self.sampler.sample(logits, &mut self.rng)
        };
        let id = id.map_err(|error| Failure(error.to_string()))?;
        if let Ok(repetition) = &mut self.repetition {
            repetition.see(&[id]);
        }
        if penalised {
            *self.counts.entry(id).or_default() += 1;
        }
        let complete = match &mut self.constraint {
            None => false,
            Some(constraint) => constraint.accept(id).map_err(Failure)?,
        };
        let logprobs = self.logprobs.map(|count| logprobs(logits, id, count));
        Ok((Token { id, logprobs }, complete))
    }

    /// What is chosen from: the logits with penalties, biases and the constraint's mask.
    fn change(&mut self, logits: &[f32]) -> Result<(), Failure> {
        self.changed.clear();
        self.changed.extend_from_slice(logits);
        if let Ok(repetition) = &self.repetition {
            repetition.apply(&mut self.changed);
        }
        for (token, count) in &self.counts {
            if let Some(logit) = self.changed.get_mut(*token as usize) {
                *logit -= self.frequency_penalty * *count as f32 + self.presence_penalty;
            }
        }
        for (token, bias) in &self.bias {
            if let Some(logit) = self.changed.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        match &mut self.constraint {
            None => Ok(()),
            Some(constraint) => constraint.mask(&mut self.changed).map_err(Failure),
        }
    }
}

/// The model's own log-probabilities of `token` and of the `count` likeliest tokens: no temperature, no penalties.
///
/// # Shapes
/// - logits: `[vocabulary]`
pub(crate) fn logprobs(logits: &[f32], token: u32, count: usize) -> Logprobs {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    let total = f64::from(max) + sum.ln();
    // JSON has no infinity; nothing is less likely than the least number.
    let of = |logit: f32| ((f64::from(logit) - total) as f32).max(f32::MIN);
    let order =
        |a: &u32, b: &u32| -> Ordering { logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)) };
    let mut top: Vec<u32> = Vec::new();
    if count == 1 {
        top.extend((0..logits.len() as u32).min_by(order));
    } else if count > 1 {
        top.extend(0..logits.len() as u32);
        if count < top.len() {
            top.select_nth_unstable_by(count, order);
            top.truncate(count);
        }
        top.sort_unstable_by(order);
    }
    Logprobs {
        token: logits.get(token as usize).map_or(f32::MIN, |logit| of(*logit)),
        top: top.into_iter().map(|id| (id, of(logits[id as usize]))).collect(),
    }
}

#[cfg(test)]
mod tests;
