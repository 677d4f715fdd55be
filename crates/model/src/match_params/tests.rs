use super::*;
use crate::attention::{DESIGNS, Scale};
use serde_json::json;

fn reference(hidden: usize, layers: usize) -> ModelConfig {
    let scale = Scale::new(hidden, 32);
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
            let attention = AttentionConfig::preset(kind, &Scale::new(hidden, 32)).unwrap();
            let matched = match_params(&reference, &attention, 0.01).unwrap();
            assert_eq!(matched.parameters, matched.config.parameters().unwrap());
            assert!(matched.parameters.abs_diff(target) * 100 <= target, "{kind}: {}", matched.deviation);
        }
    }
}

#[test]
fn an_unreachable_size_is_an_error() {
    let reference = reference(128, 2);
    let attention = AttentionConfig::preset("mla", &Scale::new(128, 2048)).unwrap();
    let error = match_params(&reference, &attention, 0.01).unwrap_err().to_string();
    assert!(error.contains("mla"), "{error}");
}

#[test]
fn mixtures_of_experts_match_by_the_width_of_their_experts() {
    for shared_size in [0, 160, 100] {
        let mut reference = reference(256, 4);
        reference.moe = serde_json::from_value(json!({
            "experts": 8, "top_k": 2, "expert_size": 160, "shared_size": shared_size, "dense_layers": [0],
        }))
        .unwrap();
        let target = reference.parameters().unwrap();
        for (kind, _) in DESIGNS {
            let attention = AttentionConfig::preset(kind, &Scale::new(256, 32)).unwrap();
            let matched = match_params(&reference, &attention, 0.01).unwrap();
            assert!(matched.parameters.abs_diff(target) * 100 <= target, "{kind}: {}", matched.deviation);
            assert_eq!(matched.config.intermediate_size, reference.intermediate_size);
            let moe = matched.config.moe.unwrap();
            let shared = if shared_size == 160 { moe.expert_size } else { shared_size };
            assert_eq!(moe.shared_size, shared, "{kind}");
        }
    }
}

#[test]
fn a_model_matches_itself() {
    let reference = reference(192, 3);
    let matcher = Matcher::new(&reference).unwrap();
    let matched = matcher.finish(&reference.attention, 0.0).unwrap();
    assert_eq!((matched.config, matched.deviation), (reference.clone(), 0.0));
    assert_eq!(matcher.target(), reference.parameters().unwrap());
}
