//! `compare`: the report's form and the models it leaves.

use crate::support::{keys, refused, run, succeed, text, workplace};
use serde_json::Value;
use std::{collections::BTreeSet, fs};

#[test]
fn a_comparison_leaves_a_report_and_models() {
    let folder = workplace();
    let path = folder.path();
    let small = ["--set", "train.eval_tokens=4096", "--set", "train.batch_size=2"];
    let args =
        [&["compare", "--steps", "3", "--attention", "mha,mfa,mfa-kr", "--out", "out"][..], &small].concat();
    let output = run(path, &args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let told = text(&output.stdout);
    for part in ["mha", "mfa", "mfa-kr", "out: report.md, report.json, loss.png, loss.svg"] {
        assert!(told.contains(part), "`{part}` is not in: {told}");
    }

    let out = path.join("out");
    let report: Value = serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap();
    assert_eq!(keys(&report), BTreeSet::from(["data", "tokenizer", "tokens", "seed", "runs", "setup"]));
    assert_eq!((&report["data"], &report["seed"]), (&"synthetic:stories".into(), &0.into()));
    assert_eq!((&report["tokenizer"], &report["tokens"]), (&"bpe:1024".into(), &(3 * 2 * 256).into()));
    let setup = report["setup"]["command"].as_str().unwrap();
    assert!(setup.ends_with("train.batch_size=2"), "{setup}");
    let documented = [
        "attention",
        "params",
        "kv_bytes_per_token",
        "total_effective_rank",
        "shared_latent_dim",
        "val_loss",
        "val_bits_per_byte",
        "recall_accuracy",
        "train_tokens_per_s",
        "decode_tokens_per_s",
        "peak_rss_mib",
    ];
    let more =
        ["non_embedding_params", "kv_ratio_to_mha", "steps", "train_seconds", "summary", "sample", "curve"];
    let runs = report["runs"].as_array().unwrap();
    assert_eq!(runs.iter().map(|run| &run["attention"]).collect::<Vec<_>>(), ["mha", "mfa", "mfa-kr"]);
    for run in runs {
        assert_eq!(keys(run), documented.iter().chain(&more).copied().collect());
        for key in documented.iter().filter(|key| !["attention", "recall_accuracy"].contains(key)) {
            assert!(run[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {run}");
        }
        assert!(run["recall_accuracy"].as_f64().is_some_and(|right| (0.0..=1.0).contains(&right)), "{run}");
    }
    let params = || runs.iter().map(|run| run["params"].as_f64().unwrap());
    let (least, most) = (params().fold(f64::MAX, f64::min), params().fold(0.0, f64::max));
    assert!(most / least < 1.01, "{least} to {most} parameters");
    let bytes: Vec<u64> = runs.iter().map(|run| run["kv_bytes_per_token"].as_u64().unwrap()).collect();
    assert!(bytes[0] > bytes[1] && bytes[1] > bytes[2], "{bytes:?}");

    assert!(fs::read(out.join("loss.png")).unwrap().starts_with(b"\x89PNG"));
    assert!(fs::read_to_string(out.join("loss.svg")).unwrap().contains("</svg>"));
    assert!(fs::read_to_string(out.join("report.md")).unwrap().contains("mfa-kr"));

    fs::write(path.join("ids.json"), "[5, 6, 7, 8]").unwrap();
    for kind in ["mha", "mfa", "mfa-kr"] {
        let model = out.join(kind);
        let model = model.to_str().unwrap();
        let told = succeed(path, &["generate", model, "--prompt", "Once", "--max-tokens", "4"]);
        assert!(told.starts_with("Once"), "{told}");
        succeed(path, &["logits", model, "--tokens", "ids.json", "--out", "logits.safetensors"]);
    }

    // The folder is taken now.
    let error = refused(path, &args);
    assert!(error.contains("out already has a run"), "{error}");
}

const QUICK: [&str; 8] = [
    "--set",
    "data.tokenizer=bytes",
    "--set",
    "data.seq_len=32",
    "--set",
    "train.batch_size=2",
    "--set",
    "train.eval_tokens=256",
];

#[test]
fn a_text_of_ones_own_is_compared_without_recall() {
    let folder = workplace();
    let told = |out: &str| {
        let args = ["compare", "--data", "text.txt", "--steps", "2", "--seed", "5", "--attention", "mqa,tpa"];
        succeed(folder.path(), &[&args[..], &["--out", out], &QUICK].concat());
        let report = fs::read(folder.path().join(out).join("report.json")).unwrap();
        serde_json::from_slice::<Value>(&report).unwrap()
    };
    let (first, second) = (told("first"), told("second"));
    assert_eq!((&first["data"], &first["seed"]), (&"text.txt".into(), &5.into()));
    assert_eq!(first["tokenizer"], "bytes");
    for (one, two) in first["runs"].as_array().unwrap().iter().zip(second["runs"].as_array().unwrap()) {
        assert!(one["recall_accuracy"].is_null(), "{one}");
        assert_eq!((&one["val_loss"], &one["curve"]), (&two["val_loss"], &two["curve"]));
    }
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let folder = workplace();
    let path = folder.path();
    fs::create_dir(path.join("mine")).unwrap();
    fs::write(path.join("mine/notes.txt"), "mine").unwrap();
    for (args, told) in [
        (
            vec!["--attention", "mfa,linear"],
            "unknown kind `linear`: expected one of mha, mqa, gqa, mla, mfa, mfa-kr, tpa",
        ),
        (vec!["--attention", "mfa,mfa"], "`mfa` is there twice"),
        (vec!["--out", "mine"], "mine is not empty (notes.txt is there)"),
        (vec!["--steps", "0"], "--steps is 0"),
        (vec!["--minutes", "0"], "--minutes is 0"),
        (vec!["--minutes", "nan"], "--minutes is NaN"),
        (vec!["--steps", "1", "--minutes", "1"], "cannot be used with"),
        (vec!["--set", "train.speed=9"], "speed"),
        (vec!["--set", "model.attention.kind=mfa"], "mha"),
        (vec!["--config", "none.toml"], "none.toml"),
        (vec!["--config", "tiny.toml", "--set", "data.seq_len=16"], "expected mha"),
    ] {
        let fallback: &[&str] = if args.contains(&"--out") { &[] } else { &["--out", "new"] };
        let steps: &[&str] =
            if args.iter().any(|a| *a == "--steps" || *a == "--minutes") { &[] } else { &["--steps", "1"] };
        let error = refused(path, &[&["compare"][..], &args, fallback, steps].concat());
        assert!(error.contains(told), "{args:?}: {error}");
        fs::remove_dir_all(path.join("new")).ok();
    }
    // After a refusal for its data the folder can still be used.
    let error = refused(path, &["compare", "--steps", "1", "--out", "out", "--data", "nowhere.txt"]);
    assert!(error.contains("nowhere.txt"), "{error}");
    succeed(
        path,
        &[&["compare", "--steps=1", "--out=out", "--data=text.txt", "--attention=mha"][..], &QUICK].concat(),
    );
}
