use super::*;
use crate::{LanguageModel, attention::AttentionConfig, attention::Scale};
use keyfold_ops::sample::{Choice, Sampler};

fn config() -> ModelConfig {
    serde_json::from_value(serde_json::json!({
        "vocab_size": 50,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 1,
        "max_position_embeddings": 512,
        "attention": AttentionConfig::preset("gqa", &Scale::new(64, 16)).expect("a preset"),
    }))
    .expect("a configuration")
}

#[test]
fn steps_that_go_on_choose_the_likeliest_tokens() {
    let config = config();
    let model = LanguageModel::new(&config, 4, &Arena::new()).expect("a model");
    let decoder = Decoder::new(&config, model.weights()).expect("a decoder");
    let pages = [[3, 1], [0, 2]];
    let past = [5, 9];
    let batch = |tokens: [&'static [u32]; 2]| {
        [0, 1].map(|at| Chunk { tokens: tokens[at], past: 0, pages: &pages[at], logits: 1 })
    };
    let prompts: [&'static [u32]; 2] = [&[7, 8, 9, 1, 2], &[4, 4, 4, 30, 20, 10, 0, 1, 49]];
    let fill = || {
        let mut cache = decoder.paged_cache(4, 8, DType::F32).expect("a cache");
        decoder.forward(&batch(prompts), &mut cache);
        cache
    };
    let mut cache = fill();
    let mut want = vec![vec![6u32], vec![11]];
    for step in 0..7 {
        let last = want.iter().map(|tokens| tokens[step]).collect::<Vec<_>>();
        let chunks = [0, 1].map(|at| Chunk {
            tokens: std::slice::from_ref(&last[at]),
            past: past[at] + step,
            pages: &pages[at],
            logits: 1,
        });
        let logits = decoder.forward(&chunks, &mut cache).to_vec();
        for (row, tokens) in logits.chunks(50).zip(&mut want) {
            let best = (0..50).max_by(|a, b| row[*a].total_cmp(&row[*b])).expect("a token");
            tokens.push(best as u32);
        }
    }
    let mut cache = fill();
    let firsts =
        [0, 1].map(|at| Chunk { tokens: &want[at][..1], past: past[at], pages: &pages[at], logits: 1 });
    let greedy = || vec![Choice::greedy(); 2];
    let mut decoding = decoder.decode(&firsts, greedy(), &mut cache).expect("choices");
    // Some are read late.
    (0..3).for_each(|_| decoding.step());
    assert_eq!((decoding.ahead(), decoding.lead()), (3, 1));
    for (step, (first, second)) in want[0].iter().zip(&want[1]).enumerate().skip(1) {
        if step > 3 {
            decoding.step();
        }
        assert_eq!(decoding.read(), Some(vec![Ok(*first), Ok(*second)]));
    }
    assert_eq!(decoding.read(), None);
    // The second sequence has 16 places: 9 + 7 are all of them.
    let beyond = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| decoding.step()));
    assert!(beyond.is_err(), "a step beyond the pages");
    drop(decoding);
    let wrong = Choice { sampler: Sampler { top_k: Some(0), ..Sampler::default() }, ..Choice::greedy() };
    assert!(decoder.decode(&firsts, vec![wrong.clone(), wrong], &mut cache).is_err());
}

#[test]
fn batches_of_all_sizes_leave_little_memory_behind() {
    let config = config();
    let model = LanguageModel::new(&config, 3, &Arena::new()).expect("a model");
    let decoder = Decoder::new(&config, model.weights()).expect("a decoder");
    let mut cache = decoder.paged_cache(32, 16, DType::F32).expect("a cache");
    let pages: Vec<u32> = (0..32).collect();
    let tokens: Vec<u32> = (0..400).map(|i| i * 7 % 50).collect();
    let mut most = 0;
    for length in 1..=tokens.len() {
        let chunk = Chunk { tokens: &tokens[..length], past: 0, pages: &pages, logits: length };
        let logits = decoder.forward(&[chunk], &mut cache);
        assert_eq!(logits.rows(), length);
        most = most.max(decoder.arena.stats().reserved);
    }
    let stats = decoder.arena.stats();
    assert!(most <= 4 * stats.peak + 2 * POOL_SLACK, "{most} bytes reserved, at most {} in use", stats.peak);
}
