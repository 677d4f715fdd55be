//! Generation: how it ends, and that it goes on where it was stopped.
#![allow(clippy::unwrap_used)]

use keyfold_core::DType;
use keyfold_model::{
    Decoder, LanguageModel, ModelConfig, Request, Stop, attention::AttentionConfig, attention::Scale,
    generate,
};
use keyfold_ops::sample::{Rng, Sampler};
use keyfold_tensor::Arena;
use std::sync::atomic::AtomicBool;

fn decoder() -> Decoder {
    let config: ModelConfig = serde_json::from_value(serde_json::json!({
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "max_position_embeddings": 2048,
        "attention": AttentionConfig::preset("mfa", &Scale::new(16, 8)).unwrap(),
    }))
    .unwrap();
    let model = LanguageModel::new(&config, 3, &Arena::new()).unwrap();
    Decoder::new(&config, model.weights()).unwrap()
}

fn request<'a>(prompt: &'a [u32], interrupt: Option<&'a AtomicBool>) -> Request<'a> {
    Request {
        prompt,
        max_tokens: 6,
        ends: &[],
        sampler: Sampler::greedy(),
        repetition_penalty: 1.0,
        history: &[],
        interrupt,
    }
}

#[test]
fn an_interrupt_ends_a_long_prompt_and_the_cache_tells_how_far_it_came() {
    let decoder = decoder();
    let prompt: Vec<u32> = (0..1500).map(|i| i * 7 % 50).collect();
    let mut cache = decoder.cache(1600, DType::F32).unwrap();
    let set = AtomicBool::new(true);
    let mut rng = Rng::new(0);
    let done = generate(&decoder, &mut cache, &request(&prompt, Some(&set)), &mut rng, |_| true).unwrap();
    assert_eq!((done.stop, done.tokens.len()), (Stop::Cancelled, 0));
    assert!(!cache.is_empty() && cache.len() < prompt.len(), "{} of {}", cache.len(), prompt.len());

    let rest = &prompt[cache.len()..];
    let clear = AtomicBool::new(false);
    let resumed = generate(&decoder, &mut cache, &request(rest, Some(&clear)), &mut rng, |_| true).unwrap();
    let mut whole = decoder.cache(1600, DType::F32).unwrap();
    let at_once = generate(&decoder, &mut whole, &request(&prompt, None), &mut rng, |_| true).unwrap();
    assert_eq!((resumed.tokens, resumed.stop), (at_once.tokens, Stop::MaxTokens));
}

#[test]
fn a_full_cache_and_a_callers_no_end_it() {
    let decoder = decoder();
    let mut cache = decoder.cache(5, DType::F32).unwrap();
    let mut rng = Rng::new(0);
    let full = generate(&decoder, &mut cache, &request(&[1, 2, 3], None), &mut rng, |_| true).unwrap();
    assert_eq!((full.stop, full.tokens.len(), cache.len()), (Stop::Capacity, 3, 5));
    cache.truncate(0);
    let mut seen = 0;
    let refused = generate(&decoder, &mut cache, &request(&[1], None), &mut rng, |_| {
        seen += 1;
        seen < 2
    });
    let refused = refused.unwrap();
    assert_eq!((refused.stop, refused.tokens.len()), (Stop::Cancelled, 2));
}

#[test]
fn a_repetition_penalty_counts_what_the_cache_holds_already() {
    let decoder = decoder();
    let prompt: Vec<u32> = (0..30).map(|i| i * 11 % 50).collect();
    let write = |penalty: f32, split: usize, history: &[u32]| {
        let mut cache = decoder.cache(100, DType::F32).unwrap();
        if split > 0 {
            decoder.step(&prompt[..split], &mut cache);
        }
        let request = Request {
            max_tokens: 40,
            repetition_penalty: penalty,
            history,
            ..request(&prompt[split..], None)
        };
        generate(&decoder, &mut cache, &request, &mut Rng::new(0), |_| true).map(|done| done.tokens)
    };
    let distinct = |tokens: &[u32]| tokens.iter().collect::<std::collections::BTreeSet<_>>().len();
    let (free, penalised) = (write(1.0, 0, &[]).unwrap(), write(5.0, 0, &[]).unwrap());
    assert!(distinct(&penalised) > distinct(&free), "{penalised:?} {free:?}");
    assert_eq!(write(5.0, 17, &prompt[..17]).unwrap(), penalised);
    assert!(write(0.0, 0, &[]).is_err());
}
