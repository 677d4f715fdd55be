use super::*;
use crate::{
    attention::{AttentionConfig, DESIGNS, Scale},
    lm::LanguageModel,
    sequences::Sequences,
};
use half::bf16;
use serde_json::{Value, json};

fn model(kind: &str, tie: bool) -> ModelConfig {
    let attention = AttentionConfig::preset(kind, &Scale::new(32, 8)).unwrap();
    serde_json::from_value(json!({
        "vocab_size": 19, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 24,
        "max_position_embeddings": 16, "tie_word_embeddings": tie, "attention": attention,
    }))
    .unwrap()
}

fn saved(config: &ModelConfig, dtype: DType) -> (tempfile::TempDir, LanguageModel) {
    let dir = tempfile::tempdir().unwrap();
    let model = LanguageModel::new(config, 1, &Arena::new()).unwrap();
    write_config(dir.path(), config, dtype).unwrap();
    write_weights(dir.path(), config, model.weights(), dtype).unwrap();
    (dir, model)
}

fn load(dir: &Path) -> Result<Weights, CheckpointError> {
    read_weights(dir, &read_config(dir)?, DType::F32, false, &Arena::new())
}

#[test]
fn every_design_comes_back_the_same() {
    for (kind, _) in DESIGNS {
        for tie in [false, true] {
            let config = model(kind, tie);
            let (dir, original) = saved(&config, DType::F32);
            assert_eq!(read_config(dir.path()).unwrap(), config);
            let arena = Arena::new();
            let again = LanguageModel::with_weights(&config, load(dir.path()).unwrap(), &arena).unwrap();
            let ids = [3, 1, 4, 1, 5];
            let sequences = Sequences::new(1, 5);
            assert_eq!(original.logits(&ids, &sequences).to_vec(), again.logits(&ids, &sequences).to_vec());
        }
    }
}

#[test]
fn bf16_checkpoints_hold_rounded_matrices_and_whole_vectors() {
    let (dir, original) = saved(&model("mfa", false), DType::Bf16);
    let loaded = load(dir.path()).unwrap();
    for ((declared, before), (_, after)) in original.weights().iter().zip(loaded.iter()) {
        let rounded: Vec<f32> = before.value.to_vec().iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
        assert_eq!(after.value.to_vec(), rounded, "{}", declared.name);
    }
    // Matrices may also stay bf16 in memory.
    let config = read_config(dir.path()).unwrap();
    let narrow = read_weights(dir.path(), &config, DType::Bf16, false, &Arena::new()).unwrap();
    assert_eq!(narrow.matrices.value.to_vec(), loaded.matrices.value.to_vec());
}

#[test]
fn truncated_weights_are_refused_at_every_length() {
    let (dir, _) = saved(&model("mha", true), DType::F32);
    let path = dir.path().join(WEIGHTS_FILE);
    let whole = std::fs::read(&path).unwrap();
    for len in (0..whole.len()).step_by(97) {
        std::fs::write(&path, &whole[..len]).unwrap();
        let error = load(dir.path()).unwrap_err().to_string();
        assert!(error.contains(WEIGHTS_FILE), "{error}");
    }
}

#[test]
fn a_header_with_a_huge_length_is_refused() {
    let (dir, _) = saved(&model("mha", true), DType::F32);
    let path = dir.path().join(WEIGHTS_FILE);
    let mut bytes = std::fs::read(&path).unwrap();
    for length in [u64::MAX, 1 << 40, bytes.len() as u64] {
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(load(dir.path()), Err(CheckpointError::Safetensors { .. })));
    }
}

#[test]
fn missing_extra_and_misshapen_tensors_are_named() {
    let config = model("mha", false);
    let (dir, original) = saved(&config, DType::F32);
    let other = |edit: &dyn Fn(&mut ModelConfig)| {
        let mut config = config.clone();
        edit(&mut config);
        read_weights(dir.path(), &config, DType::F32, false, &Arena::new()).unwrap_err().to_string()
    };
    let missing = other(&|config| config.num_hidden_layers = 3);
    assert!(missing.contains("model.layers.2") && missing.contains("missing"), "{missing}");
    let extra = other(&|config| config.num_hidden_layers = 1);
    assert!(extra.contains("model.layers.1") && extra.contains("does not belong"), "{extra}");
    let shape = other(&|config| config.vocab_size = 20);
    assert!(
        shape.contains("embed_tokens") && shape.contains("[20, 32]") && shape.contains("[19, 32]"),
        "{shape}"
    );
    drop(original);
}

#[test]
fn configurations_name_the_key_that_is_wrong() {
    let (dir, _) = saved(&model("mfa", false), DType::F32);
    let path = dir.path().join(CONFIG_FILE);
    let good: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(good["model_type"], "step3_text");
    let refused = |edit: &dyn Fn(&mut Value), parts: &[&str]| {
        let mut json = good.clone();
        edit(&mut json);
        std::fs::write(&path, json.to_string()).unwrap();
        let error = read_config(dir.path()).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "`{error}` does not mention `{part}`");
        }
    };
    refused(&|json| json["model_type"] = "gpt2".into(), &["model_type", "gpt2", "step3_text"]);
    refused(&|json| drop(json.as_object_mut().unwrap().remove("head_dim")), &["head_dim", "missing"]);
    refused(&|json| json["vocab_size"] = "many".into(), &["vocab_size", "whole number", "many"]);
    refused(&|json| json["num_attention_heads"] = 0.into(), &["attention.heads", "at least 1"]);
    refused(&|json| json["moe_layers_enum"] = "1,2".into(), &["moe_layers_enum", "num_hidden_layers = 2"]);
    refused(&|json| json["hidden_size"] = (1u64 << 50).into(), &["hidden_size", "at most"]);
    refused(&|json| *json = json!([1, 2]), &["JSON object", "array"]);
    std::fs::write(&path, "{\"model_type\": ").unwrap();
    assert!(matches!(read_config(dir.path()), Err(CheckpointError::Json { .. })));
    std::fs::remove_file(&path).unwrap();
    assert!(read_config(dir.path()).unwrap_err().to_string().contains(CONFIG_FILE));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    #[test]
    fn damaged_weights_never_panic(position in 0usize..4096, byte: u8) {
        let (dir, _) = saved(&model("mqa", true), DType::Bf16);
        let path = dir.path().join(WEIGHTS_FILE);
        let mut bytes = std::fs::read(&path).unwrap();
        let position = position % bytes.len();
        bytes[position] = byte;
        std::fs::write(&path, &bytes).unwrap();
        let _ = load(dir.path());
    }

    #[test]
    fn damaged_configurations_never_panic(position in 0usize..2048, byte: u8) {
        let (dir, _) = saved(&model("mla", true), DType::F32);
        let path = dir.path().join(CONFIG_FILE);
        let mut bytes = std::fs::read(&path).unwrap();
        let position = position % bytes.len();
        bytes[position] = byte;
        std::fs::write(&path, &bytes).unwrap();
        let _ = load(dir.path());
    }
}
