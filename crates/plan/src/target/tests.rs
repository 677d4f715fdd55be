use super::*;
use crate::PRESETS;
use std::fs;

const RUN: &str = r#"
[model]
hidden_size = 32
num_hidden_layers = 2
intermediate_size = 48
max_position_embeddings = 48
[model.attention]
kind = "mfa"
heads = 4
head_dim = 16
[train]
steps = 20
"#;

fn refused(name: &str, text: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    Target::open(path.to_str().unwrap()).unwrap_err().to_string()
}

fn vocab(text: &str) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    fs::write(&path, text).unwrap();
    Target::open(path.to_str().unwrap()).unwrap().config.vocab_size
}

#[test]
fn every_preset_is_a_model() {
    for (name, _) in PRESETS {
        let target = Target::open(name).unwrap();
        assert_eq!((target.name.as_str(), &target.source), (*name, &Source::Preset));
    }
}

#[test]
fn vocabularies_come_from_the_tokenizers_line() {
    assert_eq!(vocab(RUN), 257);
    assert_eq!(vocab(&format!("{RUN}[data]\ntokenizer = \"bpe:1024\"\nsource = \"x\"\n")), 1024);
    assert_eq!(vocab(&RUN.replace("hidden_size", "vocab_size = 999\nhidden_size")), 999);
    let error = refused("run.toml", &format!("{RUN}[data]\ntokenizer = \"tokenizer.json\"\n"));
    assert!(error.contains("`model.vocab_size` is missing"), "{error}");
    for tokenizer in ["bpe:", "bpe:x", "bpe:3", "bpe:-1", "bpe:99999999999999999999999"] {
        let error = refused("run.toml", &format!("{RUN}[data]\ntokenizer = \"{tokenizer}\"\n"));
        assert!(error.contains("`data.tokenizer`"), "{tokenizer}: {error}");
    }
    let error = refused("run.toml", &format!("{RUN}[data]\ntokenizer = \"bpe:99999999\"\n"));
    assert!(error.contains("vocab_size"), "{error}");
}

#[test]
fn folders_of_models_and_runs_are_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    assert!(Target::open(path).unwrap_err().to_string().contains("config.json"));
    fs::write(folder.path().join("config.toml"), RUN).unwrap();
    assert!(matches!(Target::open(path).unwrap().source, Source::Toml(_)));
    let (_, preset) = PRESETS.iter().find(|(name, _)| *name == "step-3").unwrap();
    fs::write(folder.path().join("config.json"), preset).unwrap();
    let target = Target::open(path).unwrap();
    assert_eq!(target.config, Target::open("step-3").unwrap().config);
}

#[test]
fn what_is_no_model_is_refused_with_a_reason() {
    let error = Target::open("gpt-9").unwrap_err().to_string();
    assert!(
        error.contains("gpt-9") && error.contains("paper-7b-mfa-kr") && error.contains("step-3"),
        "{error}"
    );
    let llama = |change: &str| {
        format!(
            r#"{{"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "vocab_size": 64, "max_position_embeddings": 64, {change}}}"#
        )
    };
    for (text, told) in [
        (String::new(), "not valid JSON"),
        ("[]".to_owned(), "a JSON object"),
        ("[".repeat(100_000), "not valid JSON"),
        ("{}".to_owned(), "`model_type` is missing"),
        (r#"{"model_type": "mamba"}"#.to_owned(), "`model_type` is mamba: expected one of llama"),
        (r#"{"model_type": "llama"}"#.to_owned(), "`hidden_size` is missing"),
        (llama(r#""num_attention_heads": 7"#), "`num_attention_heads` is 7"),
        (llama(r#""num_attention_heads": 0"#), "`num_attention_heads` is 0"),
        (llama(r#""num_attention_heads": 4, "num_key_value_heads": 3"#), "`num_key_value_heads` is 3"),
        (llama(r#""num_attention_heads": 4, "head_dim": 15"#), "head_dim"),
        (llama(r#""num_attention_heads": 4, "head_dim": -1"#), "`head_dim` is -1"),
        (llama(r#""num_attention_heads": 1e30"#), "num_attention_heads"),
        (llama(r#""num_attention_heads": 4, "head_dim": 18446744073709551615"#), "head_dim"),
        (llama(r#""num_attention_heads": 16777216, "head_dim": 16777216"#), "overflow"),
        (
            r#"{"model_type": "step3_vl", "text_config": {"model_type": "step3_text"}}"#.to_owned(),
            "text_config.",
        ),
    ] {
        let error = refused("config.json", &text);
        assert!(error.contains(told), "{told}: {error}");
    }
    assert!(refused("run.toml", "[model]\nhidden_size = ").contains("line 2"));
    assert!(
        refused("run.toml", &RUN.replace("heads = 4", "heads = 0")).contains("`model.attention.heads` is 0")
    );
    assert!(refused("run.toml", &RUN.replace("head_dim", "head_dims")).contains("head_dim"));
}

#[test]
fn a_file_without_an_end_is_not_read_to_it() {
    if Path::new("/dev/zero").exists() {
        let error = Target::open("/dev/zero").unwrap_err().to_string();
        assert!(error.contains("longer than"), "{error}");
    }
}
