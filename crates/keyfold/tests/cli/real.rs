//! Published models, where they are at hand: `KEYFOLD_REAL_MODELS` names a folder with a model folder for each, that beside
//! the model has `reference.json` (greedy token ids and their text) and `reference.safetensors` (`input_ids`, `logits`) as
//! transformers computed them.

use crate::support::{run, succeed, text};
use safetensors::SafeTensors;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Largest error of logits relative to the largest magnitude.
const TOLERANCE: f32 = 1e-3;

pub(crate) fn models() -> Vec<PathBuf> {
    let Some(folder) = std::env::var_os("KEYFOLD_REAL_MODELS") else {
        eprintln!("skipped: KEYFOLD_REAL_MODELS names no folder of real models");
        return Vec::new();
    };
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("KEYFOLD_REAL_MODELS: {error}"));
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("reference.json").exists())
        .collect();
    found.sort();
    assert!(!found.is_empty(), "KEYFOLD_REAL_MODELS has no model with a reference.json");
    found
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    file.tensor(name)
        .unwrap()
        .data()
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

fn reference(model: &Path) -> (Vec<u32>, Vec<f32>) {
    let bytes = fs::read(model.join("reference.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let ids = file.tensor("input_ids").unwrap().data().to_vec();
    let ids = ids.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect();
    (ids, floats(&file, "logits"))
}

#[test]
fn logits_are_those_of_transformers() {
    for model in models() {
        let (ids, want) = reference(&model);
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ids.json"), serde_json::to_string(&ids).unwrap()).unwrap();
        for dtype in [&[][..], &["--dtype", "f32"]] {
            let args =
                ["logits", model.to_str().unwrap(), "--tokens", "ids.json", "--out", "out.safetensors"];
            succeed(folder.path(), &[&args[..], dtype].concat());
            let bytes = fs::read(folder.path().join("out.safetensors")).unwrap();
            let got = floats(&SafeTensors::deserialize(&bytes).unwrap(), "logits");
            assert_eq!(got.len(), want.len());
            let scale = want.iter().fold(0f32, |max, x| max.max(x.abs()));
            let worst = got.iter().zip(&want).fold(0f32, |max, (g, w)| max.max((g - w).abs())) / scale;
            eprintln!("{} {dtype:?}: relative error {worst:.1e}", model.display());
            assert!(worst <= TOLERANCE, "{} {dtype:?}: {worst}", model.display());
        }
    }
}

#[test]
fn greedy_texts_are_those_of_transformers() {
    for model in models() {
        let (ids, _) = reference(&model);
        let json: Value = serde_json::from_slice(&fs::read(model.join("reference.json")).unwrap()).unwrap();
        let want = json["text"].as_str().unwrap().trim_start_matches("<bos>");
        let prompt = "The capital of France is Paris. Once upon a time there was a small model that";
        assert!(want.starts_with(prompt));
        let new = (json["greedy"].as_array().unwrap().len() - ids.len()).to_string();
        for dtype in [&["--dtype", "f32"][..], &[]] {
            let args = ["generate", model.to_str().unwrap(), "--prompt", prompt, "--temperature", "0"];
            let output = run(Path::new("."), &[&args[..], &["--max-tokens", &new], dtype].concat());
            assert!(output.status.success(), "{}", text(&output.stderr));
            assert_eq!(text(&output.stdout).trim_end_matches('\n'), want, "{} {dtype:?}", model.display());
        }
    }
}
