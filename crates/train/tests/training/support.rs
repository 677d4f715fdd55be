//! Tiny runs, and what they leave behind.

use keyfold_tensor::Device;
use keyfold_train::{
    atomic::Versions,
    checksums::CHECKSUMS_FILE,
    config::RunConfig,
    metrics::{self, Record},
    run::{Event, RunError, Summary, run},
};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

/// A model and run that take milliseconds a step; overridden by each test.
const TINY: &str = r#"
[model]
hidden_size = 32
num_hidden_layers = 2
intermediate_size = 48
max_position_embeddings = 32

[model.attention]
kind = "mfa"
heads = 4
head_dim = 16

[data]
source = "synthetic:stories"
seq_len = 32

[train]
steps = 6
batch_size = 4
lr = 3e-3
schedule = { kind = "cosine", warmup = 2, final_ratio = 0.1 }
log_every = 2
eval_every = 3
eval_tokens = 256
save_every = 0
"#;

pub(crate) fn config(overrides: &[&str]) -> RunConfig {
    let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
    RunConfig::parse(TINY, Path::new("tiny.toml"), &overrides).unwrap()
}

/// A text of many short documents, other ones for another `seed`.
pub(crate) fn write_text(path: &Path, seed: usize) {
    const WORDS: &[&str] = &["sun", "moon", "rises", "falls", "over", "the", "old", "hill", "and", "river"];
    let mut text = String::new();
    let mut state = seed + 1;
    for _ in 0..40 {
        for _ in 0..30 {
            state = (state * 1_103_515_245 + 12_345) % (1 << 31);
            text.push_str(WORDS[(state >> 16) % WORDS.len()]);
            text.push(' ');
        }
        text.push_str("\n<|endoftext|>\n");
    }
    fs::write(path, text).unwrap();
}

pub(crate) fn train(config: &RunConfig, out: &Path, resume: bool) -> Result<Summary, RunError> {
    run(config.clone(), out, resume, Device::Cpu, &AtomicBool::new(false), |_| {})
}

/// Asks the run to stop during update `step`, as Ctrl-C does.
pub(crate) fn train_until(config: &RunConfig, out: &Path, resume: bool, step: u64) -> Summary {
    let stop = AtomicBool::new(step == 0);
    run(config.clone(), out, resume, Device::Cpu, &stop, |event| {
        if matches!(event, Event::Step(report) if report.step == step) {
            stop.store(true, Ordering::Relaxed);
        }
    })
    .unwrap()
}

/// The losses of every update.
pub(crate) fn losses(config: &RunConfig) -> Vec<f64> {
    let folder = tempfile::tempdir().unwrap();
    let mut losses = Vec::new();
    run(config.clone(), &folder.path().join("run"), false, Device::Cpu, &AtomicBool::new(false), |event| {
        if let Event::Step(report) = event {
            losses.push(report.loss);
        }
    })
    .unwrap();
    losses
}

/// The newest checkpoint of the run in `out`.
pub(crate) fn newest(out: &Path) -> PathBuf {
    Versions::latest(&out.join("checkpoints")).unwrap().unwrap()
}

/// All that a run leaves and that time has no part in: the newest checkpoint's name and files, and the metrics.
#[derive(Debug, PartialEq)]
pub(crate) struct Remains {
    files: Vec<(String, Vec<u8>)>,
    counters: serde_json::Value,
    metrics: Vec<Record>,
}

pub(crate) fn remains(out: &Path) -> Remains {
    let dir = newest(out);
    let mut files: Vec<(String, Vec<u8>)> = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(path).unwrap())
        })
        // They hold, or depend on, the seconds that a run took.
        .filter(|(name, _)| name != "training.json" && name != CHECKSUMS_FILE)
        .collect();
    files.sort();
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    for name in ["config.json", "model.safetensors", "tokenizer.json", "training.safetensors"] {
        assert!(names.contains(&name), "{name} is not among {names:?}");
    }
    let text = fs::read_to_string(dir.join("training.json")).unwrap();
    let mut counters: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(counters["elapsed_s"].take().as_f64().unwrap() > 0.0);
    let mut metrics = metrics::read(&out.join("metrics.jsonl")).unwrap();
    for record in &mut metrics {
        assert!(record.elapsed_s > 0.0 && record.tokens_per_s > 0.0, "{record:?}");
        (record.elapsed_s, record.tokens_per_s) = (0.0, 0.0);
    }
    Remains { files, counters, metrics }
}

/// Fails with the name of what differs instead of megabytes of it.
pub(crate) fn assert_same(got: &Remains, want: &Remains, context: &str) {
    for ((got_name, got), (name, want)) in got.files.iter().zip(&want.files) {
        assert_eq!(got_name, name, "{context}");
        assert!(got == want, "{context}: {name} differs");
    }
    assert_eq!(got.counters, want.counters, "{context}");
    assert_eq!(got.metrics, want.metrics, "{context}");
    assert_eq!(got.files.len(), want.files.len(), "{context}");
}
