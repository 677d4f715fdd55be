use super::*;
use crate::attention::{DESIGNS, Scale};
use serde_json::json;

fn tiny(attention: serde_json::Value) -> Result<ModelConfig, String> {
    let config: ModelConfig = serde_json::from_value(json!({
        "vocab_size": 16, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48,
        "max_position_embeddings": 64, "attention": attention,
    }))
    .map_err(|error| error.to_string())?;
    config.validate().map_err(|error| error.to_string())?;
    Ok(config)
}

#[track_caller]
fn refused(attention: serde_json::Value, parts: &[&str]) {
    let error = tiny(attention).unwrap_err();
    for part in parts {
        assert!(error.contains(part), "`{error}` does not mention `{part}`");
    }
}

#[test]
fn presets_are_valid_and_round_trip() {
    for hidden in [64, 256, 768, 2048] {
        let scale = Scale::new(hidden, 32);
        for (kind, _) in DESIGNS {
            let attention = AttentionConfig::preset(kind, &scale).unwrap();
            assert_eq!(attention.kind(), *kind);
            let json = serde_json::to_value(&attention).unwrap();
            assert_eq!(json["kind"], *kind);
            assert_eq!(serde_json::from_value::<AttentionConfig>(json.clone()).unwrap(), attention);
            tiny(json).unwrap();
        }
    }
    assert!(AttentionConfig::preset("mamba", &Scale::new(64, 32)).is_none());
}

#[test]
fn mfa_preset_caches_an_eighth_of_mha_and_key_reuse_a_sixteenth() {
    let scale = Scale::new(2048, 128);
    let elements = |kind| {
        AttentionConfig::preset(kind, &scale).unwrap().design().cache_layout().unwrap().elements_per_token()
    };
    // arXiv 2412.19255, section 4: 196,608, 24,576 and 12,288 bytes over 24 layers at 16 bit.
    assert_eq!(
        [elements("mha"), elements("mfa"), elements("mfa-kr")].map(|n| n * 48),
        [196_608, 24_576, 12_288]
    );
}

#[test]
fn hostile_configurations_are_refused_by_key() {
    refused(
        json!({"kind": "gqa", "heads": 6, "kv_heads": 4, "head_dim": 8}),
        &["attention.kv_heads", "divisor", "4"],
    );
    refused(json!({"kind": "mha", "heads": 0, "head_dim": 8}), &["attention.heads", "at least 1"]);
    refused(json!({"kind": "mha", "heads": 4, "head_dim": 7}), &["attention.head_dim", "even", "7"]);
    refused(json!({"kind": "mha", "heads": 4}), &["head_dim"]);
    refused(json!({"kind": "mha", "heads": 4, "head_dim": 8, "head": 3}), &["head"]);
    refused(json!({"kind": "transformer", "heads": 4}), &["transformer"]);
    refused(json!({"kind": "mha", "heads": 4, "head_dim": 8, "rope_theta": 0.5}), &["attention.rope_theta"]);
    refused(
        json!({"kind": "mha", "heads": 4, "head_dim": 8, "softmax_scale": -1.0}),
        &["attention.softmax_scale"],
    );
    refused(
        json!({"kind": "mfa-kr", "heads": 4, "head_dim": 8, "position": "alibi", "reuse_from": "relative"}),
        &["attention.reuse_from", "pre_rope", "relative"],
    );
    refused(
        json!({"kind": "mla", "heads": 4, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
               "v_head_dim": 8, "position": "none"}),
        &["attention.qk_rope_head_dim", "0"],
    );
    refused(json!({"kind": "mha", "heads": 1u64 << 40, "head_dim": 8}), &["attention.heads", "at most"]);
    refused(json!({"kind": "mha", "heads": 1 << 23, "head_dim": 1 << 23}), &["overflow"]);
    refused(json!({"kind": "mha", "heads": -1, "head_dim": 8}), &["-1"]);
}

#[test]
fn absurd_depth_is_refused_before_weights_are_listed() {
    let mut config = tiny(json!({"kind": "mha", "heads": 4, "head_dim": 8})).unwrap();
    config.num_hidden_layers = 1 << 24;
    assert!(config.validate().unwrap_err().to_string().contains("num_hidden_layers"));
}

#[test]
fn alibi_slopes_follow_the_paper() {
    use crate::position::alibi_slopes;
    assert_eq!(alibi_slopes(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]);
    // 12 heads: those of 8, then every other one of 16.
    let slopes = alibi_slopes(12);
    assert_eq!(slopes[..8], alibi_slopes(8)[..]);
    assert!((slopes[8] - 0.5f32.sqrt()).abs() < 1e-6 && slopes.len() == 12);
}

proptest::proptest! {
    #[test]
    fn any_sizes_are_validated_without_panic(
        kind in 0..DESIGNS.len(),
        sizes in proptest::collection::vec(0u64..u64::MAX, 12),
    ) {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = sizes[..] else { unreachable!() };
        let small = |n: u64| if n.is_multiple_of(3) { n } else { n % 130 };
        let tree = json!({
            "vocab_size": small(a), "hidden_size": small(b), "num_hidden_layers": c % 5,
            "intermediate_size": small(d), "max_position_embeddings": small(e),
            "attention": { "kind": DESIGNS[kind].0, "heads": small(f), "head_dim": small(g), "kv_heads": small(h),
                "kv_lora_rank": small(i), "qk_nope_head_dim": small(j), "qk_rope_head_dim": small(k),
                "v_head_dim": small(l) },
        });
        if let Ok(config) = serde_json::from_value::<ModelConfig>(tree) {
            let _ = config.validate();
        }
    }
}

#[test]
fn sizes_that_only_multiply_together_are_refused() {
    let huge = 1 << 22;
    refused(
        json!({"kind": "tpa", "heads": huge, "head_dim": huge, "query_rank": huge}),
        &["overflow", "tensor products"],
    );
    let mut config = tiny(json!({"kind": "mha", "heads": 2, "head_dim": 8})).unwrap();
    config.moe = serde_json::from_value(json!({ "experts": 1 << 24, "top_k": 1, "expert_size": 1 })).unwrap();
    assert!(config.validate().unwrap_err().to_string().contains("weights"));
}
