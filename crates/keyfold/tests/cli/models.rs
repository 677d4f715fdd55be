//! `generate` and `logits`: what they write, and what they say of models and inputs that cannot be used.

use crate::support::{keyfold, model_copy, newest, refusal, refused, run, succeed, text, trained};
use keyfold_core::DType;
use keyfold_model::{LanguageModel, Sequences, checkpoint};
use keyfold_tensor::Arena;
use safetensors::{Dtype, SafeTensors};
use std::{
    fs,
    io::Read,
    path::Path,
    process::{Output, Stdio},
};

fn generate(options: &[&str]) -> Output {
    let model = trained().to_str().unwrap();
    run(trained(), &[&["generate", model, "--prompt", "Day 3: the"], options].concat())
}

fn written(options: &[&str]) -> String {
    let output = generate(options);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn the_same_seed_writes_the_same_text() {
    let first = written(&["--seed", "7", "--max-tokens", "20"]);
    assert!(first.starts_with("Day 3: the"), "{first}");
    assert_eq!(first, written(&["--seed", "7", "--max-tokens", "20"]));
    assert_ne!(first, written(&["--seed", "8", "--max-tokens", "20"]));
    // The likeliest token needs no seed.
    let likeliest = written(&["--temperature", "0", "--seed", "1"]);
    assert_eq!(likeliest, written(&["--temperature", "0", "--seed", "2"]));
    assert_eq!(likeliest, written(&["--top-k", "1", "--seed", "3"]));
    // One thread or more, a run's folder or a checkpoint's: the same.
    assert_eq!(likeliest, written(&["--temperature", "0", "--threads", "1"]));
    let model = newest(trained());
    let model = model.to_str().unwrap();
    let same = succeed(trained(), &["generate", model, "--prompt", "Day 3: the", "--temperature", "0"]);
    assert_eq!(likeliest, same);
}

#[test]
fn it_stops_after_as_many_tokens_as_wanted_or_at_the_longest_sequence() {
    let told = |options: &[&str]| text(&generate(options).stderr);
    assert!(told(&["--max-tokens", "5", "--seed", "7"]).contains("5 tokens (--max-tokens)"));
    assert_eq!(written(&["--max-tokens", "0"]), "Day 3: the\n");
    // A byte a token: 10 of the prompt, and the last token needs no place in the cache.
    let told = told(&["--max-tokens", "1000000", "--temperature", "3"]);
    assert!(
        told.contains("39 tokens (the model's longest sequence)") || told.contains("end of document"),
        "{told}"
    );
    let dtypes = written(&["--kv-dtype", "bf16", "--dtype", "bf16", "--max-tokens", "8"]);
    assert!(dtypes.len() > "Day 3: the".len());
}

#[test]
fn text_comes_as_it_is_made() {
    let model = trained().to_str().unwrap();
    let mut child = keyfold(trained(), &["generate", model, "--temperature", "0", "--max-tokens", "30"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // A reader that goes away after the first byte is no failure.
    let mut byte = [0];
    child.stdout.take().unwrap().read_exact(&mut byte).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn prompts_and_numbers_out_of_range_are_refused() {
    let model = trained().to_str().unwrap();
    let long = "x".repeat(48);
    let error = refused(trained(), &["generate", model, "--prompt", &long]);
    assert!(
        error.contains("--prompt has 48 tokens: expected fewer than the model's longest sequence, 48"),
        "{error}"
    );
    for (option, value, told) in [
        ("--temperature", "-1", "-1"),
        ("--temperature", "nan", "NaN"),
        ("--top-p", "0", "0"),
        ("--top-p", "1.5", "1.5"),
        ("--top-k", "0", "top"),
        ("--max-tokens", "many", "many"),
        ("--kv-dtype", "f8", "`f8`: expected f32 or bf16, or fp8 on a GPU"),
        ("--kv-dtype", "fp8", "f32 or bf16 on the CPU"),
        ("--dtype", "fp8", "`fp8`: expected f32 or bf16"),
        ("--threads", "0", "--threads is 0"),
        ("--device", "toaster", "toaster"),
    ] {
        let error = refusal(&generate(&[&format!("{option}={value}")]));
        assert!(error.contains(told), "{option}={value}: {error}");
    }
}

#[test]
fn missing_and_damaged_models_are_refused_by_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("ids.json"), "[1, 2]").unwrap();
    let both = |model: &Path, file: &str, context: &str| {
        let model = model.to_str().unwrap();
        let error = refused(path, &["generate", model, "--max-tokens", "1"]);
        assert!(error.contains(file), "generate, {context}: {error}");
        // The tokenizer is of no use to logits.
        if file != "tokenizer.json" {
            let error = refused(path, &["logits", model, "--tokens", "ids.json", "--out", "out.safetensors"]);
            assert!(error.contains(file), "logits, {context}: {error}");
            assert!(!path.join("out.safetensors").exists());
        }
    };
    both(&path.join("nowhere"), "nowhere", "no folder");
    both(path, "config.json", "an empty folder");
    fs::create_dir(path.join("checkpoints")).unwrap();
    both(path, "no checkpoint has been written yet", "a run without checkpoints");

    let model = model_copy(path);
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        let whole = fs::read(model.join(file)).unwrap();
        for (context, bytes) in [
            ("empty", vec![]),
            ("half", whole[..whole.len() / 2].to_vec()),
            ("binary", vec![0xff; 100]),
            ("text", b"{\"a\": []}".to_vec()),
            ("a list", b"[]".to_vec()),
        ] {
            fs::write(model.join(file), bytes).unwrap();
            both(&model, file, &format!("{file}: {context}"));
        }
        if file != "config.json" {
            fs::remove_file(model.join(file)).unwrap();
            both(&model, file, &format!("no {file}"));
        }
        fs::write(model.join(file), whole).unwrap();
    }
    succeed(path, &["generate", model.to_str().unwrap(), "--max-tokens", "1"]);
    let config = fs::read_to_string(model.join("config.json")).unwrap();
    assert!(config.contains("\"hidden_size\": 32"), "{config}");
    fs::write(model.join("config.json"), config.replace("\"hidden_size\": 32", "\"hidden_size\": 64"))
        .unwrap();
    both(&model, "model.embed_tokens.weight", "another width");
}

#[test]
fn logits_are_those_of_the_library() {
    let folder = tempfile::tempdir().unwrap();
    let (tokens, out) = (folder.path().join("ids.json"), folder.path().join("logits.safetensors"));
    let ids: Vec<u32> = (0..40).map(|i| i * 31 % 257).collect();
    fs::write(&tokens, serde_json::to_string(&ids).unwrap()).unwrap();
    for model in [trained().to_owned(), newest(trained())] {
        let args = ["logits", model.to_str().unwrap(), "--tokens", "ids.json", "--out", "logits.safetensors"];
        assert_eq!(succeed(folder.path(), &args), "");
    }
    let dir = newest(trained());
    let config = checkpoint::read_config(&dir).unwrap();
    let arena = Arena::new();
    let weights = checkpoint::read_weights(&dir, &config, DType::F32, false, &arena).unwrap();
    let model = LanguageModel::with_weights(&config, weights, &arena).unwrap();
    let want = model.logits(&ids, &Sequences::new(1, ids.len())).to_vec();

    let bytes = fs::read(&out).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.names(), ["logits"]);
    let view = file.tensor("logits").unwrap();
    assert_eq!((view.dtype(), view.shape()), (Dtype::F32, &[40, 257][..]));
    let got: Vec<f32> =
        view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(got, want);
    assert!(want.iter().any(|x| x.abs() > 0.1));
}

#[test]
fn token_files_that_are_none_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = trained().to_str().unwrap();
    let long = serde_json::to_string(&vec![1; 49]).unwrap();
    for (content, told) in [
        ("", "expected a JSON array of token ids"),
        ("[1, 2", "expected a JSON array of token ids"),
        ("{\"ids\": [1]}", "expected a JSON array of token ids"),
        ("[1.5]", "expected a JSON array of token ids"),
        ("[-1]", "expected a JSON array of token ids"),
        ("[4294967296]", "expected a JSON array of token ids"),
        ("[\"a\"]", "expected a JSON array of token ids"),
        ("[[1]]", "expected a JSON array of token ids"),
        ("[]", "0 tokens: expected 1 to the model's longest sequence, 48"),
        (&long, "49 tokens: expected 1 to the model's longest sequence, 48"),
        ("[1, 257]", "token 1 is 257: expected an id below vocab_size = 257"),
        ("[4294967295]", "token 0 is 4294967295: expected an id below vocab_size = 257"),
    ] {
        fs::write(folder.path().join("ids.json"), content).unwrap();
        let args = ["logits", model, "--tokens", "ids.json", "--out", "out.safetensors"];
        let error = refused(folder.path(), &args);
        assert!(error.contains("ids.json") && error.contains(told), "{content}: {error}");
    }
    let args = ["logits", model, "--tokens", "none.json", "--out", "out.safetensors"];
    assert!(refused(folder.path(), &args).contains("none.json"));
    assert!(!folder.path().join("out.safetensors").exists());
}

/// `/dev/full` fails every write as a full disk does.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_and_no_panic() {
    let folder = tempfile::tempdir().unwrap();
    let model = trained().to_str().unwrap();
    fs::write(folder.path().join("ids.json"), "[1, 2, 3]").unwrap();
    let error = refused(folder.path(), &["logits", model, "--tokens", "ids.json", "--out", "/dev/full"]);
    assert!(error.contains("/dev/full") && error.contains("No space left"), "{error}");
    let bench =
        ["bench", "train", "--json", "--steps=1", "--layers=1", "--width=64", "--vocab=64", "--seq=8"];
    for args in [&["generate", model, "--max-tokens", "3"][..], &["data", "list"], &bench] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = keyfold(folder.path(), args).stdout(full).output().unwrap();
        let error = refusal(&output);
        assert!(error.contains("standard output") && error.contains("No space left"), "{args:?}: {error}");
    }
}
