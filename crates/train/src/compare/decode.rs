//! Speed of generating from a trained model, with a sample of what it says.

use crate::{bench::median, run::RunError, trainer::TrainError};
use keyfold_core::DType;
use keyfold_data::Tokenizer;
use keyfold_model::{Decoder, LanguageModel, Request, generate};
use keyfold_ops::sample::{Rng, Sampler};
use keyfold_tensor::{Arena, Device};

/// What decoding gave.
#[derive(Clone, Debug)]
pub struct DecodeBench {
    /// Tokens per second after the first, one sequence; the median of [`DecodeBench::REPEATS`].
    pub tokens_per_s: f64,
    /// What the model wrote.
    pub sample: String,
}

impl DecodeBench {
    /// Tokens in the cache when decoding begins.
    pub const PROMPT: usize = 32;
    /// Tokens then decoded.
    pub const NEW: usize = 96;
    /// Repetitions.
    pub const REPEATS: usize = 5;
}

/// Generates from `model` with a cache of `dtype`.
///
/// # Errors
/// When the logits are not finite.
pub fn bench_decode(
    model: &LanguageModel,
    tokenizer: &Tokenizer,
    dtype: DType,
) -> Result<DecodeBench, RunError> {
    // Decoding is measured on the host, wherever the model was trained.
    let weights = match model.arena().device() {
        Device::Cpu => model.weights().clone(),
        Device::Cuda(_) => model.weights().copied_to(&Arena::new()),
    };
    let decoder = Decoder::new(model.config(), &weights).map_err(TrainError::from)?;
    let longest = model.config().max_position_embeddings;
    let new = DecodeBench::NEW.min(longest.saturating_sub(1)).max(1);
    let sampler = Sampler { temperature: 0.8, top_p: 0.95, ..Sampler::default() };
    let run = |prompt: &[u32], seed| {
        let capacity = (prompt.len() + new).min(longest);
        let mut cache = decoder.cache(capacity, dtype).map_err(|error| TrainError::Model(error.into()))?;
        let request = Request {
            prompt,
            max_tokens: new,
            ends: &[],
            sampler,
            repetition_penalty: 1.0,
            history: &[],
            interrupt: None,
        };
        generate(&decoder, &mut cache, &request, &mut Rng::new(seed), |_| true)
            .map_err(|error| RunError::Train(TrainError::Sample(error)))
    };
    // A document's start is what the end token precedes in training.
    let eos = tokenizer.eos();
    let first = run(&[eos], 1)?;
    let prompt: Vec<u32> = std::iter::once(eos)
        .chain(first.tokens.iter().copied())
        .take(DecodeBench::PROMPT.min(longest - new).max(1))
        .collect();
    let mut speeds = Vec::with_capacity(DecodeBench::REPEATS);
    for seed in 0..DecodeBench::REPEATS as u64 {
        speeds.push(run(&prompt, seed)?.tokens_per_second());
    }
    let document = first.tokens.split(|token| *token == eos).next().unwrap_or_default();
    Ok(DecodeBench { tokens_per_s: median(&mut speeds), sample: tokenizer.decode(document) })
}
