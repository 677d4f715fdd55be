//! `inspect`, `plan` and `table`: figures, JSON, files, and what is refused.

use crate::support::{TINY, refused, succeed, workplace};
use serde_json::Value;
use std::{fs, path::Path};

fn json(folder: &Path, args: &[&str]) -> Value {
    let told = succeed(folder, args);
    serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error}: {told}"))
}

fn here() -> &'static Path {
    Path::new(".")
}

#[test]
fn inspect_tells_the_papers_figures() {
    for (name, bytes) in [
        ("paper-7b-mha", 196_608),
        ("paper-7b-mla", 55_296),
        ("paper-7b-mfa", 24_576),
        ("paper-7b-mfa-kr", 12_288),
        ("paper-1b-mha", 163_840),
        ("paper-1b-mfa", 20_480),
        ("paper-1b-mfa-kr", 10_240),
        ("step-3", 61 * 1024),
    ] {
        assert_eq!(json(here(), &["inspect", name, "--json"])["kv_bytes_per_token"], bytes, "{name}");
    }
    let step3 = json(here(), &["inspect", "step-3", "--kv-dtype", "fp8", "--hardware", "h800", "--json"]);
    assert_eq!(
        (&step3["arithmetic_intensity"], step3["layers"].as_array().unwrap().len()),
        (&128.0.into(), 61)
    );
    assert!(step3["hardware"]["step"]["tokens_per_s"].as_f64().unwrap() > 0.0);
    let people = succeed(here(), &["inspect", "step-3", "--hardware", "H800", "--batch", "64"]);
    for told in ["4-59", "16,384", "316,294", "on 8 x H800", "limit: "] {
        assert!(people.contains(told), "{told}: {people}");
    }
}

#[test]
fn inspect_reads_configurations_and_model_folders() {
    let folder = workplace();
    let told = json(folder.path(), &["inspect", "tiny.toml", "--json"]);
    assert_eq!(told["vocab_size"], 257);
    assert_eq!(told["kv_bytes_per_token"], 2 * 2 * 16 * 2);
    let run = crate::support::trained().to_str().unwrap();
    let model = crate::support::newest(crate::support::trained());
    for target in [run, model.to_str().unwrap()] {
        let own = json(folder.path(), &["inspect", target, "--json"]);
        assert_eq!(own["params_total"], told["params_total"], "{target}");
    }
}

#[test]
fn a_planned_design_trains() {
    let folder = workplace();
    let path = folder.path();
    fs::write(path.join("mha.toml"), TINY.replace("\"mfa\"", "\"mha\"").replace("steps = 20", "steps = 1"))
        .unwrap();
    let plan = ["plan", "mha.toml", "--kv-ratio", "0.25", "--params-within", "5%", "--context", "48"];
    let outputs = ["--write", "planned.toml", "--plot", "front.svg"];
    let people = succeed(path, &[&plan[..], &outputs].concat());
    assert!(people.contains("target") && people.contains("chosen") && people.contains("Pareto"), "{people}");
    assert!(fs::read_to_string(path.join("front.svg")).unwrap().contains("Total effective rank"));
    let target = json(path, &["inspect", "mha.toml", "--json"]);
    let planned = json(path, &["inspect", "planned.toml", "--json"]);
    let bytes = |told: &Value| told["kv_bytes_per_token"].as_u64().unwrap();
    assert!(4 * bytes(&planned) <= bytes(&target), "{planned}");
    let size = |told: &Value| told["params_total"].as_f64().unwrap();
    assert!((size(&planned) / size(&target) - 1.0).abs() <= 0.05);
    let told = succeed(path, &["train", "planned.toml", "--out", "run"]);
    assert!(told.trim_end().ends_with("step-00000001"), "{told}");
    let chosen = json(path, &[&plan[..], &["--json"]].concat());
    let chosen =
        chosen["front"].as_array().unwrap().iter().find(|design| design["chosen"] == true).unwrap().clone();
    assert_eq!(chosen["kv_bytes_per_token"], planned["kv_bytes_per_token"]);
}

#[test]
fn a_planned_preset_is_a_whole_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let args = [
        "plan",
        "paper-1b-mha",
        "--kv-budget",
        "20480",
        "--min-cost",
        "--write",
        "out.toml",
        "--plot",
        "a.png",
    ];
    succeed(folder.path(), &args);
    let config = keyfold_train::config::RunConfig::load(&folder.path().join("out.toml"), &[]).unwrap();
    config.model.validate().unwrap();
    assert!(config.model.kv_bytes_per_token(keyfold_core::DType::Bf16).unwrap() <= 20_480);
    assert!(fs::read(folder.path().join("a.png")).unwrap().starts_with(b"\x89PNG"));
}

#[test]
fn the_table_comes_in_three_formats() {
    let markdown = succeed(here(), &["table"]);
    for method in ["FPBA", "MHA", "MQA", "GQA", "MLA", "MFA", "MFA-KR"] {
        assert!(markdown.contains(&format!("| {method} |")), "{method}: {markdown}");
    }
    let own = ["table", "--hidden=512", "--heads=8", "--shared=64", "-m", "9"];
    let rows = json(here(), &[&own[..], &["--format", "json"]].concat());
    assert_eq!(rows["rows"][6]["numbers"]["total_effective_rank"], 9 * 64);
    assert_eq!(rows["sizes"]["kv_heads"], 2);
    assert!(succeed(here(), &["table", "--format", "latex"]).contains("\\begin{tabular}"));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let folder = workplace();
    let path = folder.path();
    let huge = u64::MAX.to_string();
    for (args, told) in [
        (vec!["inspect", "gpt-9"], "no such file or folder, and no preset"),
        (vec!["inspect", "step-3", "--hardware", "abacus"], "expected one of H100, H200"),
        (vec!["inspect", "step-3", "--kv-dtype", "int3"], "bf16, fp8 or int4"),
        (vec!["inspect", "step-3", "--context", "0"], "--context is 0"),
        (vec!["inspect", "step-3", "--context", &huge], "--context is 18446744073709551615"),
        (vec!["inspect", "step-3", "--batch=-1"], "--batch"),
        (vec!["inspect", "text.txt"], "text.txt: not valid JSON"),
        (vec!["plan", "tiny.toml"], "--kv-budget"),
        (vec!["plan", "tiny.toml", "--kv-budget", "1"], "within 1 bytes per token"),
        (vec!["plan", "tiny.toml", "--kv-ratio=-1"], "--kv-ratio"),
        (vec!["plan", "tiny.toml", "--kv-ratio=nan"], "--kv-ratio is NaN"),
        (vec!["plan", "tiny.toml", "--kv-budget", "1", "--kv-ratio", "1"], "cannot be used with"),
        (vec!["plan", "tiny.toml", "--kv-ratio", "1", "--params-within", "x"], "--params-within"),
        (vec!["plan", "tiny.toml", "--kv-ratio", "1", "--params-within=-3%"], "--params-within"),
        (vec!["plan", "tiny.toml", "--kv-ratio", "1", "--plot", "front.pdf"], ".svg or .png"),
        (vec!["plan", "tiny.toml", "--kv-ratio", "1", "--write", "no/such/folder.toml"], "folder.toml"),
        (vec!["table", "--heads", "0"], "--heads is 0"),
        (vec!["table", "--heads", "7"], "--head-dim"),
        (vec!["table", "--kv-heads", "3"], "--kv-heads is 3"),
        (vec!["table", "--hidden", &huge], "--hidden"),
    ] {
        let error = refused(path, &args);
        assert!(error.contains(told), "{args:?}: {error}");
    }
}
