use super::*;
use crate::attention::{AttentionConfig, DESIGNS, Scale};
use crate::position::Position;
use serde_json::json;

fn model(attention: AttentionConfig) -> ModelConfig {
    serde_json::from_value(json!({
        "vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96,
        "max_position_embeddings": 128, "attention": attention,
    }))
    .unwrap()
}

#[test]
fn absurd_numbers_of_layers_are_refused_before_they_are_listed() {
    for model_type in ["llama", "qwen2", "qwen3_moe", "gemma3_text", "step3_text", "deepseek_v3"] {
        let json = json!({
            "model_type": model_type, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
            "num_hidden_layers": 1_000_000_000_000_000_000u64, "vocab_size": 64, "max_position_embeddings": 64,
            "head_dim": 16, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
            "v_head_dim": 8, "n_routed_experts": 4, "num_experts": 4, "num_experts_per_tok": 2,
            "moe_intermediate_size": 8, "use_sliding_window": model_type == "qwen2", "sliding_window": 8,
            "max_window_layers": 0,
        });
        let mut json = json;
        if model_type != "qwen2" {
            json["use_sliding_window"] = false.into();
        }
        let error = read(&json).unwrap_err().to_string();
        assert!(error.contains("`num_hidden_layers` is 1000000000000000000"), "{model_type}: {error}");
    }
}

#[test]
fn presets_are_written_in_the_family_that_others_can_open() {
    let expected = [
        ("mha", "llama"),
        ("mqa", "llama"),
        ("gqa", "llama"),
        ("mla", "deepseek_v3"),
        ("mfa", "step3_text"),
        ("mfa-kr", "keyfold"),
        ("tpa", "keyfold"),
    ];
    assert_eq!(
        expected.map(|(kind, _)| kind).to_vec(),
        DESIGNS.iter().map(|(kind, _)| *kind).collect::<Vec<_>>()
    );
    for (kind, model_type) in expected {
        let config = model(AttentionConfig::preset(kind, &Scale { hidden: 64, head_dim: 16 }).unwrap());
        let json = write(&config, DType::F32);
        assert_eq!(json["model_type"], model_type);
        assert_eq!(read(&json).unwrap(), config);
    }
}

#[test]
fn what_a_foreign_family_cannot_express_is_written_in_the_own_one() {
    let mut config = model(AttentionConfig::preset("mfa", &Scale { hidden: 64, head_dim: 16 }).unwrap());
    let AttentionConfig::Mfa(attention) = &mut config.attention else { unreachable!() };
    attention.position = Position::Alibi;
    let json = write(&config, DType::Bf16);
    assert_eq!(
        (json["model_type"].as_str(), json["torch_dtype"].as_str()),
        (Some("keyfold"), Some("bfloat16"))
    );
    assert_eq!(read(&json).unwrap(), config);
}

#[test]
fn step3_keys_are_those_of_its_configuration_class() {
    // FACTS: share_q_dim, head_dim, the singular max_position_embedding, moe_layers_enum as text.
    let json = json!({
        "model_type": "step3_text", "hidden_size": 7168, "intermediate_size": 18432, "num_attention_heads": 64,
        "num_attention_groups": 1, "num_hidden_layers": 61, "vocab_size": 128_815, "rms_norm_eps": 1e-5,
        "head_dim": 256, "share_q_dim": 2048, "max_position_embedding": 65536, "moe_layers_enum": "",
    });
    let config = read(&json).unwrap();
    let AttentionConfig::Mfa(attention) = &config.attention else { panic!("not MFA") };
    assert_eq!((attention.heads, attention.head_dim, attention.rank()), (64, 256, 2048));
    assert_eq!((attention.rope_theta, config.max_position_embeddings), (500_000.0, 65536));
}

#[test]
fn rope_parameters_of_newer_files_are_read() {
    let mut json = write(
        &model(AttentionConfig::preset("mha", &Scale { hidden: 64, head_dim: 16 }).unwrap()),
        DType::F32,
    );
    let keys = json.as_object_mut().unwrap();
    keys.remove("rope_theta");
    keys.remove("rope_scaling");
    keys.insert("rope_parameters".into(), json!({"rope_type": "default", "rope_theta": 1e6}));
    let AttentionConfig::Mha(attention) = read(&json).unwrap().attention else { panic!("not MHA") };
    assert_eq!(attention.rope_theta, 1e6);
    json["rope_parameters"]["rope_type"] = "dynamic".into();
    assert!(read(&json).unwrap_err().to_string().contains("rope_parameters.rope_type"));
    json["rope_parameters"]["rope_type"] = "yarn".into();
    assert!(read(&json).unwrap_err().to_string().contains("rope_parameters.factor"));
}
