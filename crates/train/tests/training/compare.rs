//! Comparisons: equal sizes, equal data, the report's form, and what is refused.

use crate::support::{config, write_text};
use keyfold_tensor::Device;
use keyfold_train::{
    compare::{Budget, CompareError, CompareEvent, CompareOptions, PARAMETER_TOLERANCE, compare},
    config::RunConfig,
    report::Report,
    schedule::Schedule,
};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

fn options(overrides: &[&str], kinds: &[&str], out: &Path) -> CompareOptions {
    let reference = [
        "model.attention={ kind = 'mha', heads = 4, head_dim = 16 }",
        "model.hidden_size=64",
        "model.num_hidden_layers=1",
        "model.intermediate_size=256",
        "model.max_position_embeddings=64",
        "model.tie_word_embeddings=true",
        "train.steps=99",
    ];
    CompareOptions {
        device: Device::Cpu,
        base: config(&[&reference, overrides].concat()),
        kinds: kinds.iter().map(|kind| (*kind).to_owned()).collect(),
        budget: Budget::Steps(3),
        out: out.to_owned(),
        command: "a test".to_owned(),
    }
}

fn run(options: &CompareOptions) -> Result<Report, CompareError> {
    compare(options, &AtomicBool::new(false), &mut |_| {})
}

fn losses(report: &Report) -> Vec<(String, f64, Vec<f64>)> {
    let curve = |run: &keyfold_train::report::RunReport| run.curve.iter().map(|point| point.loss).collect();
    report.runs.iter().map(|run| (run.attention.clone(), run.val_loss, curve(run))).collect()
}

#[test]
fn variants_are_of_one_size_and_the_same_seed_gives_the_same_losses() {
    let folder = tempfile::tempdir().unwrap();
    let kinds: Vec<&str> = keyfold_model::attention::DESIGNS.iter().map(|(kind, _)| *kind).collect();
    let out = folder.path().join("first");
    let first = run(&options(&[], &kinds, &out)).unwrap();
    assert_eq!(first.runs.iter().map(|run| run.attention.as_str()).collect::<Vec<_>>(), kinds);
    let mha = first.runs[0].params as f64;
    for run in &first.runs {
        assert!(
            (run.params as f64 / mha - 1.0).abs() <= PARAMETER_TOLERANCE,
            "{}: {}",
            run.attention,
            run.params
        );
        assert!(run.val_loss.is_finite() && run.val_bits_per_byte.is_some(), "{run:?}");
        assert!(run.train_tokens_per_s > 0.0 && run.decode_tokens_per_s > 0.0, "{run:?}");
        assert!(run.kv_bytes_per_token > 0 && run.total_effective_rank > 0, "{run:?}");
        assert_eq!((run.steps, run.curve.last().map(|point| point.tokens)), (3, Some(first.tokens)));
    }
    assert_eq!(Report::read(&out.join("report.json")).unwrap(), first);

    // In another order: no variant depends on those before it.
    let reversed: Vec<&str> = kinds.iter().rev().copied().collect();
    let mut second = run(&options(&[], &reversed, &folder.path().join("second"))).unwrap();
    second.runs.reverse();
    assert_eq!(losses(&second), losses(&first));
    let other = run(&options(&["train.seed=1"], &["mha"], &folder.path().join("third"))).unwrap();
    assert_ne!(losses(&other)[0], losses(&first)[0]);

    // The configuration is that of the comparison, not of the file it came from.
    let stored = RunConfig::load(&out.join("config.toml"), &[]).unwrap();
    assert_eq!((stored.train.steps, stored.model.vocab_size), (3, 257));
    assert_eq!(stored.train.schedule, Schedule::Cosine { warmup: 1, final_ratio: 0.1 });
}

#[test]
fn a_text_has_no_recall() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.txt");
    write_text(&text, 0);
    let source = format!("data.source={}", text.display());
    let out = folder.path().join("out");
    let report = run(&options(&[&source], &["mqa"], &out)).unwrap();
    assert_eq!(report.runs[0].recall_accuracy, None);
    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap();
    assert!(json["runs"][0]["recall_accuracy"].is_null());
    assert!(json["runs"][0].as_object().unwrap().contains_key("recall_accuracy"));
}

#[test]
fn what_cannot_be_compared_leaves_no_folder() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let error = run(&options(&[], &["mfa", "linear"], &out)).unwrap_err().to_string();
    assert_eq!(
        error,
        "--attention: unknown kind `linear`: expected one of mha, mqa, gqa, mla, mfa, mfa-kr, tpa"
    );
    let error = run(&options(&[], &["mfa", "mha", "mfa"], &out)).unwrap_err().to_string();
    assert_eq!(error, "--attention: `mfa` is there twice");
    assert!(!out.exists());

    fs::create_dir(&out).unwrap();
    fs::write(out.join("notes.txt"), "mine").unwrap();
    let error = run(&options(&[], &["mha"], &out)).unwrap_err().to_string();
    assert!(error.contains("is not empty (notes.txt is there)"), "{error}");
    assert_eq!(fs::read_to_string(out.join("notes.txt")).unwrap(), "mine");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
}

#[test]
fn the_reference_must_be_mha() {
    let folder = tempfile::tempdir().unwrap();
    let mqa = "model.attention={ kind = 'mqa', heads = 4, head_dim = 16 }";
    let error = run(&options(&[mqa], &["mfa"], &folder.path().join("out"))).unwrap_err().to_string();
    assert!(error.contains("`model.attention.kind` is mqa: expected mha"), "{error}");
    for key in ["qk_norm=true", "softmax_scale=0.5", "window=8"] {
        let option = format!("model.attention.{key}");
        let error = run(&options(&[&option], &["mfa"], &folder.path().join(key))).unwrap_err().to_string();
        let name = key.split('=').next().unwrap();
        assert!(error.contains(&format!("`model.attention.{name}` is given")), "{error}");
    }
}

#[test]
fn all_designs_have_the_positions_of_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    let kinds: Vec<&str> = keyfold_model::attention::DESIGNS.iter().map(|(kind, _)| *kind).collect();
    for (position, theta) in [("alibi", 10_000.0), ("none", 10_000.0), ("rope", 500.0)] {
        let out = folder.path().join(position);
        let keys =
            [format!("model.attention.position={position}"), format!("model.attention.rope_theta={theta:?}")];
        run(&options(&[&keys[0], &keys[1]], &kinds, &out)).unwrap();
        for kind in &kinds {
            let config = keyfold_model::checkpoint::read_config(&out.join(kind)).unwrap();
            let attention = serde_json::to_value(&config.attention).unwrap();
            assert_eq!(attention["position"], position, "{kind}");
            assert_eq!(attention["rope_theta"], theta, "{kind}");
        }
    }
}

#[test]
fn a_stopped_comparison_reports_what_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let out: PathBuf = folder.path().join("out");
    let stop = AtomicBool::new(false);
    let error = compare(&options(&[], &["mha", "mqa", "gqa"], &out), &stop, &mut |event| {
        if matches!(event, CompareEvent::Variant("gqa")) {
            stop.store(true, Ordering::Relaxed);
        }
    })
    .unwrap_err();
    assert_eq!(error.to_string(), "stopped; 2 of 3 variants are in the report");
    let report = Report::read(&out.join("report.json")).unwrap();
    assert_eq!(report.runs.iter().map(|run| run.attention.as_str()).collect::<Vec<_>>(), ["mha", "mqa"]);
    for file in ["report.md", "loss.svg", "loss.png"] {
        assert!(out.join(file).exists(), "{file}");
    }
}

#[test]
fn a_budget_of_minutes_becomes_updates_for_all() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(&[], &["mha", "mfa"], &folder.path().join("out"));
    options.budget = Budget::Minutes(1e-9);
    let report = run(&options).unwrap();
    assert_eq!(report.runs.iter().map(|run| run.steps).collect::<Vec<_>>(), [1, 1]);
    // Measuring the speed takes nothing from the data: the first update is that of a budget in steps.
    options.budget = Budget::Steps(1);
    options.out = folder.path().join("steps");
    assert_eq!(losses(&run(&options).unwrap()), losses(&report));
}
