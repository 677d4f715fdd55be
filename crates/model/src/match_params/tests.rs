use super::*;
use crate::attention::{DESIGNS, Scale};
use serde_json::json;

fn reference(hidden: usize, layers: usize) -> ModelConfig {
    let scale = Scale { hidden, head_dim: 32 };
    serde_json::from_value(json!({
        "vocab_size": 512, "hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": hidden * 8 / 3,
        "max_position_embeddings": 256, "attention": AttentionConfig::preset("mha", &scale),
    }))
    .unwrap()
}

#[test]
fn every_design_matches_within_one_percent() {
    for (hidden, layers) in [(128, 4), (192, 6), (256, 4), (1024, 2)] {
        let reference = reference(hidden, layers);
        let target = reference.parameters().unwrap();
        for (kind, _) in DESIGNS {
            let attention = AttentionConfig::preset(kind, &Scale { hidden, head_dim: 32 }).unwrap();
            let matched = match_params(&reference, &attention, 0.01).unwrap();
            assert_eq!(matched.parameters, matched.config.parameters().unwrap());
            assert!(matched.parameters.abs_diff(target) * 100 <= target, "{kind}: {}", matched.deviation);
        }
    }
}

#[test]
fn an_unreachable_size_is_an_error() {
    let reference = reference(128, 2);
    let attention = AttentionConfig::preset("mla", &Scale { hidden: 128, head_dim: 2048 }).unwrap();
    let error = match_params(&reference, &attention, 0.01).unwrap_err().to_string();
    assert!(error.contains("mla"), "{error}");
}
