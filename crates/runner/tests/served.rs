//! What is served is what `generate` makes: for every design and every published family's fixture, whatever the batch, the
//! chunks, the pages, the shared beginnings, the preemptions and the guesses.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use keyfold_core::DType;
use keyfold_engine::{Engine, EngineConfig, Lookup, Request, Sampling};
use keyfold_model::{
    Decoder, ModelConfig,
    attention::{AttentionConfig, DESIGNS, Scale},
    checkpoint, generate,
    weights::Weights,
};
use keyfold_ops::sample::{Rng, Sampler};
use keyfold_runner::ModelRunner;
use keyfold_tensor::Arena;
use std::{collections::HashMap, fs, path::Path};

const TOKENS: usize = 14;

struct Case {
    prompt: Vec<u32>,
    sampling: Sampling,
}

/// Prompts of all lengths, some with the same beginning.
fn cases(vocab: usize, longest: usize) -> Vec<Case> {
    let mut number = 1u32;
    let mut next = || {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (number >> 8) % vocab as u32
    };
    let shared: Vec<u32> = (0..longest / 2).map(|_| next()).collect();
    let room = longest - TOKENS;
    let lengths = [1, 2, room / 3, room / 2, room - 1, room];
    let mut cases = Vec::new();
    for (index, length) in lengths.into_iter().enumerate() {
        for both in [false, true] {
            let mut prompt: Vec<u32> = if both { shared.clone() } else { Vec::new() };
            prompt.truncate(length.saturating_sub(1));
            // Something that comes again, for guesses.
            while prompt.len() < length {
                let token = if prompt.len().is_multiple_of(3) { 3 } else { next() };
                prompt.push(token);
            }
            let temperature = if index % 2 == 0 { 0.0 } else { 0.8 };
            let seed = index as u64;
            let repetition_penalty = if index % 3 == 1 { 1.4 } else { 1.0 };
            let sampling = Sampling { temperature, seed, repetition_penalty, ..Sampling::greedy() };
            cases.push(Case { prompt, sampling });
        }
    }
    cases
}

fn alone(decoder: &Decoder, case: &Case, dtype: DType) -> Vec<u32> {
    let mut cache = decoder.cache(case.prompt.len() + TOKENS, dtype).unwrap();
    let sampler = Sampler { temperature: case.sampling.temperature, ..Sampler::default() };
    let request = keyfold_model::Request {
        prompt: &case.prompt,
        max_tokens: TOKENS,
        ends: &[],
        sampler,
        repetition_penalty: case.sampling.repetition_penalty,
        history: &[],
        interrupt: None,
    };
    generate(decoder, &mut cache, &request, &mut Rng::new(case.sampling.seed), |_| true).unwrap().tokens
}

fn served(
    config: EngineConfig,
    decoder: Decoder,
    cases: &[Case],
    dtype: DType,
) -> (Vec<Vec<u32>>, Engine<ModelRunner>) {
    let runner = ModelRunner::new(decoder, config.pages, config.page_size, dtype).unwrap();
    let mut engine = Engine::new(config, runner).unwrap();
    let mut made: HashMap<_, Vec<u32>> = HashMap::new();
    let mut ids = Vec::new();
    let submit = |engine: &mut Engine<ModelRunner>, case: &Case| {
        let request = Request {
            prompt: case.prompt.clone(),
            max_tokens: TOKENS,
            ends: Vec::new(),
            stop: Vec::new(),
            sampling: case.sampling.clone(),
            score_prompt: false,
            constraint: None,
            text: None,
        };
        engine.submit(request).unwrap()
    };
    let mut waiting = cases.iter();
    loop {
        // They come in twos, while others are served.
        for case in waiting.by_ref().take(2) {
            ids.push(submit(&mut engine, case));
        }
        if !engine.has_work() {
            break;
        }
        for update in engine.step().unwrap() {
            made.entry(update.id).or_default().extend(update.tokens.iter().map(|token| token.id));
        }
        engine.audit().unwrap();
    }
    (ids.iter().map(|id| made[id].clone()).collect(), engine)
}

fn check(name: &str, config: &ModelConfig, weights: &Weights) {
    let longest = config.max_position_embeddings.min(64);
    let decoder = || Decoder::new(config, weights).unwrap();
    let cases = cases(config.vocab_size, longest);
    let roomy = EngineConfig {
        pages: 200,
        page_size: 16,
        max_len: longest,
        vocab_size: config.vocab_size,
        max_batch_tokens: 512,
        max_running: 16,
        max_logits: 64,
        prefix_cache: true,
        lookup: None,
    };
    let tight = EngineConfig {
        pages: longest / 4,
        page_size: 4,
        max_batch_tokens: 11,
        max_running: 5,
        max_logits: 12,
        lookup: Some(Lookup { tokens: 3, longest: 3, shortest: 1 }),
        ..roomy
    };
    for dtype in [DType::F32, DType::Bf16] {
        let want: Vec<Vec<u32>> = cases.iter().map(|case| alone(&decoder(), case, dtype)).collect();
        for (kind, config) in [("roomy", roomy), ("tight", tight)] {
            let (got, engine) = served(config, decoder(), &cases, dtype);
            for ((got, want), case) in got.iter().zip(&want).zip(&cases) {
                assert_eq!(got, want, "{name} {dtype:?} {kind}: prompt of {}", case.prompt.len());
            }
            let stats = engine.stats();
            assert_eq!(stats.pages_used, 0);
            assert!(stats.cached_tokens > 0, "{name}: {stats:?}");
            assert_eq!(stats.preemptions > 0, kind == "tight", "{name}: {stats:?}");
        }
    }
}

#[test]
fn every_design_is_served_as_generated() {
    for (kind, _) in DESIGNS {
        let config = ModelConfig {
            vocab_size: 96,
            hidden_size: 48,
            num_hidden_layers: 2,
            intermediate_size: 64,
            max_position_embeddings: 64,
            tie_word_embeddings: true,
            rms_norm_eps: 1e-5,
            init: Default::default(),
            activation: Default::default(),
            post_norms: false,
            embedding_scale: None,
            moe: None,
            local: None,
            attention: AttentionConfig::preset(kind, &Scale::new(48, 12)).unwrap(),
        };
        let weights = Weights::allocate(&Arena::new(), config.declare().unwrap(), DType::F32, false);
        weights.initialise(3);
        check(kind, &config, &weights);
    }
}

#[test]
fn every_family_is_served_as_generated() {
    let families = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/families");
    let mut count = 0;
    for entry in fs::read_dir(families).unwrap() {
        let path = entry.unwrap().path();
        if !path.join(checkpoint::CONFIG_FILE).exists() {
            continue;
        }
        let (config, _) = checkpoint::read_with_family(&path).unwrap();
        let weights = checkpoint::map_weights(&path, &config, &Arena::new()).unwrap();
        check(&path.file_name().unwrap().to_string_lossy(), &config, &weights);
        count += 1;
    }
    assert!(count >= 10, "{count} families");
}
