//! Checkpoints of every family as `transformers` writes them (`fixtures/families.py`): logits, decoding from the cache in
//! chunks, greedy continuations, mapped and in memory, and again after being written here.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use keyfold_core::DType;
use keyfold_model::{Decoder, LanguageModel, ModelConfig, Sequences, checkpoint, families, weights::Weights};
use keyfold_tensor::Arena;
use safetensors::SafeTensors;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Largest error relative to the largest magnitude.
const TOLERANCE: f32 = 1e-4;

struct Case {
    dir: PathBuf,
    tokens: Vec<u32>,
    logits: Vec<f32>,
    greedy: Vec<u32>,
}

impl Case {
    fn read(dir: PathBuf) -> Self {
        let bytes = std::fs::read(dir.join("expected.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let ids = |name: &str| {
            let data = file.tensor(name).unwrap().data().to_vec();
            data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
        };
        let data = file.tensor("logits").unwrap().data().to_vec();
        let logits = data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        Self { tokens: ids("tokens"), logits, greedy: ids("greedy"), dir }
    }

    fn name(&self) -> String {
        self.dir.file_name().unwrap().to_string_lossy().into_owned()
    }

    fn assert_near(&self, what: &str, got: &[f32]) {
        assert_eq!(got.len(), self.logits.len(), "{} {what}", self.name());
        let scale = self.logits.iter().fold(0f32, |max, x| max.max(x.abs()));
        let worst = got.iter().zip(&self.logits).fold(0f32, |max, (g, w)| max.max((g - w).abs()));
        assert!(worst <= TOLERANCE * scale, "{} {what}: error {worst} of {scale}", self.name());
    }

    /// All that a reader of the model can ask of it.
    fn check(&self, how: &str, config: &ModelConfig, weights: &Weights) {
        let decoder = Decoder::new(config, weights).unwrap();
        for chunk in [1, 5, self.tokens.len()] {
            let mut cache = decoder.cache(self.tokens.len(), DType::F32).unwrap();
            let got: Vec<f32> =
                self.tokens.chunks(chunk).flat_map(|ids| decoder.logits(ids, &mut cache).to_vec()).collect();
            self.assert_near(&format!("{how}, decoded by {chunk}"), &got);
        }
        let mut cache = decoder.cache(8 + self.greedy.len(), DType::F32).unwrap();
        let mut logits = decoder.step(&self.tokens[..8], &mut cache).to_vec();
        for (index, want) in self.greedy.iter().enumerate() {
            let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32;
            assert_eq!(best, *want, "{} {how}: greedy token {index}", self.name());
            logits = decoder.step(&[best], &mut cache).to_vec();
        }
        let arena = Arena::poisoned();
        let model = LanguageModel::with_weights(config, weights.clone(), &arena).unwrap();
        let got = model.logits(&self.tokens, &Sequences::new(1, self.tokens.len())).to_vec();
        self.assert_near(how, &got);
    }
}

fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/families");
    let mut dirs: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    dirs.sort();
    dirs.into_iter().map(Case::read).collect()
}

#[test]
fn logits_and_continuations_are_those_of_transformers() {
    let cases = cases();
    assert!(cases.len() >= 12, "{} families", cases.len());
    for case in cases {
        let config = checkpoint::read_config(&case.dir).unwrap();
        let arena = Arena::poisoned();
        case.check("mapped", &config, &checkpoint::map_weights(&case.dir, &config, &arena).unwrap());
        let weights = checkpoint::read_weights(&case.dir, &config, DType::F32, false, &arena).unwrap();
        case.check("read", &config, &weights);
    }
}

#[test]
fn older_keys_mean_the_same_model() {
    let mut seen = 0;
    for case in cases() {
        let Ok(text) = std::fs::read_to_string(case.dir.join("config.old.json")) else { continue };
        let old = families::read(&serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(old, checkpoint::read_config(&case.dir).unwrap(), "{}", case.name());
        seen += 1;
    }
    assert!(seen >= 3, "{seen} older configurations");
}

#[test]
fn what_is_written_means_the_same_model() {
    for case in cases() {
        let config = checkpoint::read_config(&case.dir).unwrap();
        let weights =
            checkpoint::read_weights(&case.dir, &config, DType::F32, false, &Arena::poisoned()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        checkpoint::write_config(dir.path(), &config, DType::F32).unwrap();
        checkpoint::write_weights(dir.path(), &config, &weights, DType::F32).unwrap();
        let again = checkpoint::read_config(dir.path()).unwrap();
        let weights = checkpoint::map_weights(dir.path(), &again, &Arena::poisoned()).unwrap();
        case.check("written again", &again, &weights);
    }
}

#[test]
fn gradients_are_those_of_pytorch() {
    for case in cases() {
        let config = checkpoint::read_config(&case.dir).unwrap();
        let arena = Arena::poisoned();
        let weights = checkpoint::read_weights(&case.dir, &config, DType::F32, true, &arena).unwrap();
        let model = LanguageModel::with_weights(&config, weights, &arena).unwrap();
        let targets: Vec<u32> = case.tokens[1..].iter().copied().chain([u32::MAX]).collect();
        let sequences = Sequences::new(1, case.tokens.len());
        let loss = model.forward_backward(&case.tokens, &targets, &sequences, 1.0).read();

        let text = std::fs::read_to_string(case.dir.join("gradients.json")).unwrap();
        let want: Value = serde_json::from_str(&text).unwrap();
        let near = |what: &str, got: f64, want: f64| {
            assert!((got - want).abs() <= 2e-4 * want.abs(), "{} {what}: {got} for {want}", case.name());
        };
        near("loss", loss.sum, want["loss"].as_f64().unwrap());
        let mut norms = BTreeMap::<String, f64>::new();
        for (declared, param) in model.weights().iter() {
            let norm: f64 = param.grad.unwrap().to_vec().iter().map(|g| f64::from(*g).powi(2)).sum();
            *norms.entry(merged(&declared.name)).or_default() += norm;
        }
        let want = want["squared_norms"].as_object().unwrap();
        for (name, norm) in &norms {
            // What serves the choice of experts alone has no gradient.
            let want = want.get(name).map_or(0.0, |norm| norm.as_f64().unwrap());
            near(name, *norm, want);
        }
        for name in want.keys() {
            assert!(norms.contains_key(name), "{}: {name} is not declared", case.name());
        }
    }
}

/// One name for the experts of a layer, as PyTorch's stacks count.
fn merged(name: &str) -> String {
    match name.split_once(".mlp.experts.") {
        None => name.to_owned(),
        Some((layer, weight)) => {
            let part = if weight.contains("down_proj") { "down" } else { "gate_up" };
            format!("{layer}.mlp.experts.{part}")
        }
    }
}
