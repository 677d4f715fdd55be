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
        let config = model(AttentionConfig::preset(kind, &Scale::new(64, 16)).unwrap());
        let json = write(&config, DType::F32);
        assert_eq!(json["model_type"], model_type);
        assert_eq!(read(&json).unwrap(), config);
    }
}

#[test]
fn what_a_foreign_family_cannot_express_is_written_in_the_own_one() {
    let mut config = model(AttentionConfig::preset("mfa", &Scale::new(64, 16)).unwrap());
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
    let mut json = write(&model(AttentionConfig::preset("mha", &Scale::new(64, 16)).unwrap()), DType::F32);
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

/// Every change of one or two options of every design: a form either expresses the model or names a key.
#[test]
fn a_form_expresses_a_model_or_says_why_not() {
    let changes: &[(&str, serde_json::Value)] = &[
        ("/attention/position", json!("alibi")),
        ("/attention/position", json!("none")),
        ("/attention/softmax_scale", json!(0.3)),
        ("/attention/query_norm", json!(false)),
        ("/attention/latent_norm", json!(false)),
        ("/attention/latent_norm_eps", json!(1e-5)),
        ("/attention/window", json!(8)),
        ("/attention/qkv_bias", json!(true)),
        ("/attention/qk_norm", json!(true)),
        ("/attention/rope_scaling", json!({"kind": "linear", "factor": 2.0})),
        ("/activation", json!("gelu_tanh")),
        ("/post_norms", json!(true)),
        ("/embedding_scale", json!(8.0)),
        ("/local", json!({"window": 8, "layers": [0]})),
        ("/local", json!({"window": 8, "layers": [0], "rope_theta": 1000.0})),
        ("/moe", json!({"experts": 4, "top_k": 2, "expert_size": 16})),
        ("/moe", json!({"experts": 4, "top_k": 2, "expert_size": 16, "shared_size": 16})),
        (
            "/moe",
            json!({"experts": 4, "top_k": 2, "expert_size": 16, "shared_size": 16, "scoring": "sigmoid",
            "choice_bias": true, "groups": 2, "top_groups": 1, "scaling": 2.0}),
        ),
    ];
    let change = |tree: &mut serde_json::Value, (key, value): &(&str, serde_json::Value)| {
        let (parent, key) = key.rsplit_once('/').unwrap();
        tree.pointer_mut(parent).unwrap()[key] = value.clone();
    };
    let (mut expressed, mut refused) = ([0; 3], 0);
    for (kind, _) in DESIGNS {
        let plain = model(AttentionConfig::preset(kind, &Scale::new(64, 16)).unwrap());
        for first in changes {
            for second in changes {
                let mut tree = serde_json::to_value(&plain).unwrap();
                change(&mut tree, first);
                change(&mut tree, second);
                let Ok(config) = serde_json::from_value::<ModelConfig>(tree) else { continue };
                for (index, form) in [Form::Hf, Form::Step3, Form::Keyfold].into_iter().enumerate() {
                    match form.family(&config) {
                        Ok(family) => {
                            let json = family.config_json(&config, DType::F32);
                            assert_eq!(read(&json).unwrap(), config, "{kind} {first:?} {second:?}");
                            expressed[index] += 1;
                        }
                        Err(reason) => {
                            refused += 1;
                            let known = reason.contains('`') || reason.starts_with("no class there");
                            assert!(known, "{kind} {first:?} {second:?}: {form}: {reason}");
                        }
                    }
                }
            }
        }
    }
    assert!(expressed.iter().all(|count| *count > 4) && refused > 100, "{expressed:?} {refused}");
}

#[test]
fn forms_have_names() {
    for form in [Form::Hf, Form::Step3, Form::Keyfold] {
        assert_eq!(form.to_string().parse::<Form>().unwrap(), form);
    }
    assert!("gguf".parse::<Form>().unwrap_err().to_string().contains("gguf"));
}

/// transformers refuses 256.0 for 256.
#[test]
fn whole_numbers_are_written_as_such() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures/families/gemma3_text/config.json");
    let config = read(&serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()).unwrap();
    let json = write(&config, DType::F32);
    assert_eq!(json["model_type"], "gemma3_text");
    assert!(json["query_pre_attn_scalar"].is_u64(), "{json}");
}
