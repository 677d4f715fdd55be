//! What every design of the list promises, whatever its maths (which `tests/fixtures.rs` holds against PyTorch).

use super::*;
use crate::{Decoder, LanguageModel, ModelConfig};
use keyfold_core::DType;
use keyfold_tensor::Arena;
use serde_json::json;

fn models() -> impl Iterator<Item = ModelConfig> {
    DESIGNS.iter().map(|(kind, _)| {
        let attention = AttentionConfig::preset(kind, &Scale::new(64, 16)).unwrap();
        serde_json::from_value(json!({
            "vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 40,
            "max_position_embeddings": 160, "attention": attention,
        }))
        .unwrap()
    })
}

fn ids(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| i * i % 47).collect()
}

fn assert_near(kind: &str, got: &[f32], want: &[f32]) {
    let scale = want.iter().fold(0f32, |max, x| max.max(x.abs()));
    for (g, w) in got.iter().zip(want) {
        assert!((g - w).abs() <= 1e-4 * scale, "{kind}: {g} for {w}");
    }
}

#[test]
fn odd_lengths_decode_as_they_score() {
    for config in models() {
        let model = LanguageModel::new(&config, 7, &Arena::poisoned()).unwrap();
        let decoder = Decoder::new(&config, model.weights()).unwrap();
        for len in [1, 63, 65, 130] {
            let ids = ids(len);
            let want = model.logits(&ids, &Sequences::new(1, len)).to_vec();
            for chunk in [1, 17, 64, len] {
                let mut cache = decoder.cache(len, DType::F32).unwrap();
                let got: Vec<f32> =
                    ids.chunks(chunk).flat_map(|ids| decoder.logits(ids, &mut cache).to_vec()).collect();
                assert_near(config.attention.kind(), &got, &want);
                assert_eq!(cache.len(), len);
            }
        }
    }
}

#[test]
fn a_batch_scores_as_its_sequences_do() {
    for config in models() {
        let model = LanguageModel::new(&config, 3, &Arena::poisoned()).unwrap();
        let ids = ids(3 * 33);
        let batch = model.logits(&ids, &Sequences::new(3, 33)).to_vec();
        let single: Vec<f32> =
            ids.chunks(33).flat_map(|ids| model.logits(ids, &Sequences::new(1, 33)).to_vec()).collect();
        assert_near(config.attention.kind(), &batch, &single);
    }
}

#[test]
fn a_truncated_cache_goes_on_as_if_the_rest_had_not_been() {
    for config in models() {
        let model = LanguageModel::new(&config, 5, &Arena::new()).unwrap();
        let decoder = Decoder::new(&config, model.weights()).unwrap();
        let mut cache = decoder.cache(64, DType::F32).unwrap();
        let want = decoder.step(&[1, 2, 3, 4], &mut cache).to_vec();
        decoder.step(&[40, 41, 42], &mut cache);
        cache.truncate(3);
        assert_near(config.attention.kind(), &decoder.step(&[4], &mut cache).to_vec(), &want);
    }
}

#[test]
fn linear_work_is_that_of_the_declared_matrices() {
    for config in models() {
        let mut list = Declarations::new(config.init);
        config.attention.design().declare(64, 2, &mut list).unwrap();
        let matrices: usize =
            list.finish().iter().filter(|w| w.is_matrix() && !folded(&w.name)).map(|w| w.len()).sum();
        let cost = config.attention.design().cost(64);
        let extra = match &config.attention {
            // The contraction of the query's factors is not a weight.
            AttentionConfig::Tpa(tpa) => 2 * (tpa.query_rank * tpa.heads * tpa.head_dim) as u64,
            _ => 0,
        };
        assert_eq!(cost.linear_flops, 2 * matrices as u64 + extra, "{}", config.attention.kind());
        let layout = config.attention.design().cache_layout().unwrap();
        assert_eq!(cost.elements_per_context_token, layout.elements_per_token() as u64);
    }
}

/// Weights that decoding has folded into others.
fn folded(name: &str) -> bool {
    name == "value_proj.weight"
}

#[test]
fn capacity_follows_table_1() {
    // arXiv 2412.19255, table 1: total effective rank n d, n d, n d, m d, m C, m C.
    for config in models() {
        let capacity = config.attention.design().capacity();
        let (rank, latent) = match &config.attention {
            AttentionConfig::Mha(c) => (c.head_dim, c.heads * c.head_dim),
            AttentionConfig::Mqa(c) => (c.head_dim, c.head_dim),
            AttentionConfig::Gqa(c) => (c.head_dim, c.kv_heads * c.head_dim),
            AttentionConfig::Mla(c) => (c.qk_nope_head_dim, c.kv_lora_rank),
            AttentionConfig::Mfa(c) => (c.head_dim, c.head_dim),
            AttentionConfig::MfaKr(c) => (c.head_dim, c.head_dim),
            AttentionConfig::Tpa(c) => (c.head_dim, c.key_rank * c.head_dim),
        };
        assert_eq!((capacity.rank_per_head, capacity.shared_latent_dim), (rank, latent));
        assert_eq!(capacity.total_effective_rank(), config.attention.design().heads() * rank);
    }
}
