//! `export`: the same model in another form, and models that a form cannot express.

use crate::support::{newest, refused, run, succeed, text, workplace};
use keyfold_core::DType;
use keyfold_model::{LanguageModel, Sequences, checkpoint};
use keyfold_tensor::Arena;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Attention tables of models that some other software has, with the form it needs.
const MODELS: [(&str, &str, &str, &[&str]); 5] = [
    ("mha", r#"{ kind = "mha", heads = 4, head_dim = 8 }"#, "hf", &[]),
    ("gqa", r#"{ kind = "gqa", heads = 4, kv_heads = 2, head_dim = 8 }"#, "hf", &[]),
    (
        "mla",
        r#"{ kind = "mla", heads = 4, kv_lora_rank = 16, qk_nope_head_dim = 8, qk_rope_head_dim = 4, v_head_dim = 8 }"#,
        "hf",
        &[],
    ),
    ("mfa", r#"{ kind = "mfa", heads = 4, head_dim = 16 }"#, "step3", &[]),
    (
        "mfa-moe",
        r#"{ kind = "mfa", heads = 4, head_dim = 16 }"#,
        "step3",
        &[r#"model.moe={ experts = 4, top_k = 2, expert_size = 16, shared_size = 16, dense_layers = [0] }"#],
    ),
];

/// Trains a tiny model for some steps; the folder of its run.
fn train(folder: &Path, name: &str, attention: &str, more: &[&str]) -> PathBuf {
    let attention = format!("model.attention={attention}");
    let mut args = vec!["train", "tiny.toml", "--out", name, "--set", "train.steps=8", "--set", &attention];
    more.iter().for_each(|set| args.extend(["--set", set]));
    succeed(folder, &args);
    folder.join(name)
}

fn logits(dir: &Path, ids: &[u32]) -> Vec<f32> {
    let config = checkpoint::read_config(dir).unwrap();
    let arena = Arena::new();
    let weights = checkpoint::read_weights(dir, &config, DType::F32, false, &arena).unwrap();
    let model = LanguageModel::with_weights(&config, weights, &arena).unwrap();
    model.logits(ids, &Sequences::new(1, ids.len())).to_vec()
}

fn ids() -> Vec<u32> {
    (0..40).map(|i| i * 31 % 257).collect()
}

#[test]
fn exported_models_are_the_same_models() {
    let folder = workplace();
    let path = folder.path();
    for (name, attention, form, more) in MODELS {
        let run = train(path, name, attention, more);
        let want = logits(&newest(&run), &ids());
        for form in [form, "keyfold"] {
            let out = format!("{name}-{form}");
            let told = succeed(path, &["export", name, &out, "--format", form]);
            assert!(told.starts_with(&format!("{out}: ")) && told.contains("in f32"), "{told}");
            assert_eq!(logits(&path.join(&out), &ids()), want, "{out}");
        }
        let half = format!("{name}-half");
        succeed(path, &["export", &format!("{name}-{form}"), &half, "--format", form, "--dtype", "bf16"]);
        let got = logits(&path.join(&half), &ids());
        let scale = want.iter().fold(0f32, |max, x| max.max(x.abs()));
        let worst = got.iter().zip(&want).fold(0f32, |max, (g, w)| max.max((g - w).abs()));
        assert!(worst > 0.0 && worst < 0.03 * scale, "{half}: {worst} of {scale}");
        // The text of an exported model is that of the run's.
        let wrote = |model: &str| {
            succeed(path, &["generate", model, "--prompt", "Day", "--temperature", "0", "--max-tokens", "12"])
        };
        assert_eq!(wrote(name), wrote(&format!("{name}-{form}")));
    }
    let config = |out: &str| -> Value {
        serde_json::from_slice(&fs::read(path.join(out).join("config.json")).unwrap()).unwrap()
    };
    for (out, architecture) in [
        ("mha-hf", "LlamaForCausalLM"),
        ("gqa-hf", "LlamaForCausalLM"),
        ("mla-hf", "DeepseekV3ForCausalLM"),
        ("mfa-step3", "Step3TextForCausalLM"),
        ("mha-keyfold", "KeyfoldForCausalLM"),
    ] {
        let config = config(out);
        assert_eq!(config["architectures"][0], architecture);
        // Other classes take ids of their own where the file is silent.
        assert_eq!(config.get("eos_token_id").is_some(), out != "mha-keyfold", "{out}");
        let generation = fs::read(path.join(out).join("generation_config.json")).unwrap();
        let generation: Value = serde_json::from_slice(&generation).unwrap();
        assert_eq!(generation["eos_token_id"], serde_json::json!([256]));
        assert!(path.join(out).join("tokenizer.json").exists());
    }
    assert_eq!(config("mha-hf")["eos_token_id"], 256);
}

#[test]
fn what_a_form_cannot_express_is_refused_with_the_reason() {
    let folder = workplace();
    let path = folder.path();
    train(path, "alibi", r#"{ kind = "mfa", heads = 4, head_dim = 16, position = "alibi" }"#, &[]);
    train(path, "reuse", r#"{ kind = "mfa-kr", heads = 4, head_dim = 16 }"#, &[]);
    train(path, "plain", r#"{ kind = "mfa", heads = 4, head_dim = 16, query_norm = false }"#, &[]);
    train(
        path,
        "scaled",
        r#"{ kind = "gqa", heads = 4, kv_heads = 2, head_dim = 8, softmax_scale = 0.5 }"#,
        &[],
    );
    for (name, form, told) in [
        ("alibi", "step3", "`attention.position` is alibi"),
        ("alibi", "hf", "MFA's low-rank queries"),
        ("reuse", "hf", "key reuse"),
        ("reuse", "step3", "`attention.kind` is mfa-kr"),
        ("plain", "step3", "`attention.query_norm` is false"),
        ("scaled", "hf", "`attention.softmax_scale`"),
        ("scaled", "step3", "`attention.kind` is gqa"),
        ("scaled", "gguf", "expected hf, step3 or keyfold"),
    ] {
        let error = refused(path, &["export", name, "out", "--format", form]);
        assert!(error.contains(told), "{name} as {form}: {error}");
        assert!(!path.join("out").exists());
    }
    succeed(path, &["export", "reuse", "out", "--format", "keyfold"]);
    let error = refused(path, &["export", "alibi", "out", "--format", "keyfold"]);
    assert!(error.contains("out") && error.contains("exists"), "{error}");
    let error = refused(path, &["export", "nowhere", "new", "--format", "hf"]);
    assert!(error.contains("nowhere"), "{error}");
    let left = fs::read_dir(path)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains(".tmp"));
    assert_eq!(left.count(), 0);
}

/// Other software on exported folders: `KEYFOLD_PYTHON` names a Python with torch and transformers.
#[test]
fn other_software_computes_the_same_logits() {
    let Some(python) = std::env::var_os("KEYFOLD_PYTHON") else {
        eprintln!("skipped: KEYFOLD_PYTHON names no Python with transformers");
        return;
    };
    let folder = workplace();
    let path = folder.path();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/check_export.py");
    for (name, attention, form, more) in MODELS {
        let trained = train(path, name, attention, more);
        let want = logits(&newest(&trained), &ids());
        let bytes: Vec<u8> = want.iter().flat_map(|x| x.to_le_bytes()).collect();
        let tokens: Vec<u8> = ids().iter().flat_map(|id| i64::from(*id).to_le_bytes()).collect();
        let views = [
            ("tokens", TensorView::new(Dtype::I64, vec![40], &tokens).unwrap()),
            ("logits", TensorView::new(Dtype::F32, vec![40, 257], &bytes).unwrap()),
        ];
        safetensors::serialize_to_file(views, None, &path.join("expected.safetensors")).unwrap();
        let out = format!("{name}-out");
        let exported = run(path, &["export", name, &out, "--format", form]);
        assert!(exported.status.success(), "{}", text(&exported.stderr));
        let checked = Command::new(&python)
            .arg(&script)
            .args([path.join(&out), path.join("expected.safetensors")])
            .output()
            .unwrap();
        let told = text(&checked.stdout);
        eprint!("{told}");
        assert!(checked.status.success(), "{name}: {told}{}", text(&checked.stderr));
    }
}
