//! A run that was stopped and goes on is, bit for bit, the run that never stopped.

use crate::support::{assert_same, config, newest, remains, train, train_until, write_text};
use keyfold_tensor::Device;
use keyfold_train::{
    atomic::Versions,
    config::RunConfig,
    run::{Event, RunError, run},
};
use std::{fs, path::Path, sync::atomic::AtomicBool};

/// Every combination that what is stored depends on.
fn combinations(text: &Path) -> Vec<(String, RunConfig)> {
    let text = format!("data.source={}", text.display());
    let mut all = Vec::new();
    for source in ["data.source=synthetic:stories", &text] {
        for optimizer in ["adamw", "muon"] {
            for dtype in ["f32", "bf16"] {
                let overrides = [
                    source,
                    &format!("train.optimizer.kind={optimizer}"),
                    &format!("train.checkpoint_dtype={dtype}"),
                ];
                all.push((overrides.join(" "), config(&overrides)));
            }
        }
    }
    all
}

#[test]
fn a_stopped_run_goes_on_as_if_it_had_not_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.txt");
    write_text(&text, 0);
    for (index, (name, config)) in combinations(&text).into_iter().enumerate() {
        let whole = folder.path().join(format!("whole-{index}"));
        let summary = train(&config, &whole, false).unwrap();
        assert!(!summary.interrupted && summary.evaluation.is_some());
        assert_eq!(summary.checkpoint, newest(&whole));
        let want = remains(&whole);

        // Stopped between two lines of the log, then again, then at once.
        let parts = folder.path().join(format!("parts-{index}"));
        assert!(train_until(&config, &parts, false, 3).interrupted);
        assert!(train_until(&config, &parts, true, 5).interrupted);
        let before = newest(&parts);
        assert!(train_until(&config, &parts, true, 0).interrupted);
        assert_eq!(newest(&parts), before, "{name}: nothing was done, yet a checkpoint was written");
        assert!(!train(&config, &parts, true).unwrap().interrupted);
        assert_same(&remains(&parts), &want, &name);

        // A finished run has nothing left to do.
        let again = train(&config, &parts, true).unwrap();
        assert_eq!((again.interrupted, again.checkpoint), (false, newest(&parts)));
        assert_same(&remains(&parts), &want, &name);
    }
}

#[test]
fn a_run_goes_on_from_an_older_checkpoint_than_its_metrics() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let config = config(&["train.save_every=2", "train.keep_checkpoints=3", "train.log_every=1"]);
    train(&config, &out, false).unwrap();
    let want = remains(&out);
    for step in [4, 2] {
        let versions = Versions::open(out.join("checkpoints")).unwrap();
        assert_eq!(versions.steps().unwrap(), [2, 4, 6]);
        versions.rewind(step).unwrap();
        train(&config, &out, true).unwrap();
        assert_same(&remains(&out), &want, &format!("from step {step}"));
    }
}

#[test]
fn only_as_many_checkpoints_are_kept_as_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let config = config(&["train.save_every=1", "train.keep_checkpoints=2"]);
    let mut saved = Vec::new();
    run(config, &out, false, Device::Cpu, &AtomicBool::new(false), |event| {
        if let Event::Saved(path) = event {
            saved.push(path.file_name().unwrap().to_string_lossy().into_owned());
        }
    })
    .unwrap();
    let want: Vec<String> = (1..=6).map(|step| format!("step-{step:08}")).collect();
    assert_eq!(saved, want);
    assert_eq!(Versions::open(out.join("checkpoints")).unwrap().steps().unwrap(), [5, 6]);
}

/// Rounding is for readers of the model: the run itself goes on from the exact weights, whatever is asked for later.
#[test]
fn the_storage_of_checkpoints_can_change_on_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let dtype = |name: &str| config(&[&format!("train.checkpoint_dtype={name}")]);
    for (first, then) in [("bf16", "f32"), ("f32", "bf16")] {
        let (whole, parts) = (folder.path().join(format!("{first}-whole")), folder.path().join(first));
        train(&dtype(then), &whole, false).unwrap();
        train_until(&dtype(first), &parts, false, 3);
        train(&dtype(then), &parts, true).unwrap();
        assert_same(&remains(&parts), &remains(&whole), &format!("{first}, then {then}"));
    }
}

#[test]
fn another_run_is_not_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let (text, other) = (folder.path().join("text.txt"), folder.path().join("other.txt"));
    write_text(&text, 0);
    write_text(&other, 1);
    let source = format!("data.source={}", text.display());
    let out = folder.path().join("run");
    train_until(&config(&[&source]), &out, false, 2);
    let before = remains(&out);
    let elsewhere = format!("data.source={}", other.display());
    for (overrides, told) in [
        (vec![elsewhere.as_str()], "data"),
        (vec!["data.source=synthetic:stories"], "data"),
        (vec![&source, "data.seq_len=16"], "data"),
        (vec![&source, "train.seed=1"], "seed"),
        (vec![&source, "model.hidden_size=64"], "config.json: the checkpoint is of another model"),
        (vec![&source, "model.attention.heads=2"], "config.json: the checkpoint is of another model"),
        (vec![&source, "model.tie_word_embeddings=true"], "config.json: the checkpoint is of another model"),
        (vec![&source, "train.optimizer.kind=muon"], "training.json: `optimizer` is `adamw`"),
    ] {
        let error = train(&config(&overrides), &out, true).unwrap_err().to_string();
        assert!(error.contains(told), "{overrides:?}: {error}");
        assert_same(&remains(&out), &before, "a refused run");
    }
    // What may change: how long, how fast, how often.
    let more =
        config(&[&source, "train.steps=8", "train.lr=1e-4", "train.log_every=1", "train.batch_size=2"]);
    train(&more, &out, true).unwrap();
    assert!(newest(&out).ends_with("step-00000008"));
}

#[test]
fn there_must_be_something_to_go_on_with_and_nothing_to_begin() {
    let folder = tempfile::tempdir().unwrap();
    let (config, out) = (config(&[]), folder.path().join("run"));
    let error = train(&config, &out, true).unwrap_err();
    assert!(matches!(error, RunError::Dir(_)), "{error}");
    train_until(&config, &out, false, 1);
    let error = train(&config, &out, false).unwrap_err();
    assert!(error.to_string().contains("already has a run"), "{error}");
    fs::remove_dir_all(out.join("checkpoints")).unwrap();
    let error = train(&config, &out, true).unwrap_err();
    assert!(matches!(error, RunError::NoCheckpoint(_)), "{error}");
}

#[test]
fn the_resolved_configuration_is_that_of_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let (config, out) = (config(&["train.steps=1"]), folder.path().join("run"));
    train(&config, &out, false).unwrap();
    let stored = RunConfig::load(&out.join("config.toml"), &[]).unwrap();
    assert_eq!(stored.model.vocab_size, 257);
    let mut want = config;
    want.model.vocab_size = 257;
    assert_eq!(stored, want);
    // The run's own configuration resumes it.
    train(&stored, &out, true).unwrap();
}

#[test]
fn a_vocabulary_smaller_than_the_tokenizers_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let error = train(&config(&["model.vocab_size=200"]), &out, false).unwrap_err().to_string();
    assert!(error.contains("`model.vocab_size` is 200: expected at least the tokenizer's 257"), "{error}");
    // What was refused can be tried again in the same folder.
    train(&config(&["model.vocab_size=320", "train.steps=1"]), &out, false).unwrap();
}
