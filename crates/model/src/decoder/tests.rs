use super::*;
use crate::{LanguageModel, attention::AttentionConfig, attention::Scale};

#[test]
fn batches_of_all_sizes_leave_little_memory_behind() {
    let config: ModelConfig = serde_json::from_value(serde_json::json!({
        "vocab_size": 50,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 1,
        "max_position_embeddings": 512,
        "attention": AttentionConfig::preset("gqa", &Scale::new(64, 16)).expect("a preset"),
    }))
    .expect("a configuration");
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
