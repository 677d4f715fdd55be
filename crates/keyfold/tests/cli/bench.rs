//! `bench`: the JSON that scripts read, and numbers out of range.

use crate::support::{keys, refused, succeed, trained};
use serde_json::Value;
use std::collections::BTreeSet;

fn rows(args: &[&str]) -> Vec<Value> {
    let told = succeed(trained(), args);
    let rows: Value = serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error}: {told}"));
    rows.as_array().unwrap().clone()
}

#[test]
fn train_prints_one_array_with_its_documented_keys() {
    let small =
        ["bench", "train", "--json", "--steps", "2", "--layers", "1", "--width", "64", "--vocab", "64"];
    let rows = rows(&[&small[..], &["--batch", "2", "--seq", "16", "--attention", "mha,mfa,mla"]].concat());
    let kinds: Vec<&Value> = rows.iter().map(|row| &row["attention"]).collect();
    assert_eq!(kinds, ["mha", "mfa", "mla"]);
    for row in &rows {
        let documented = [
            "attention",
            "device",
            "params",
            "batch",
            "seq",
            "loss",
            "tokens_per_s",
            "step_ms",
            "model_tflops",
            "peak_rss_mib",
            "device_mib",
            "threads",
        ];
        assert_eq!(keys(row), BTreeSet::from(documented));
        assert_eq!((&row["batch"], &row["seq"]), (&2.into(), &16.into()));
        for key in ["params", "loss", "tokens_per_s", "step_ms", "model_tflops", "threads"] {
            assert!(row[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {row}");
        }
        let speed = 32.0 / (row["step_ms"].as_f64().unwrap() / 1e3);
        assert!((row["tokens_per_s"].as_f64().unwrap() / speed - 1.0).abs() < 1e-6, "{row}");
    }
    let one = succeed(trained(), &[&small[..], &["--threads", "1", "--batch", "1", "--seq", "8"]].concat());
    assert!(one.contains("\"threads\": 1"), "{one}");
    let people = succeed(
        trained(),
        &["bench", "train", "--steps=1", "--layers=1", "--width=64", "--vocab=64", "--seq=8"],
    );
    assert!(people.lines().count() == 2 && people.contains("tok/s"), "{people}");
}

#[test]
fn decode_measures_presets_and_trained_models() {
    let sizes = ["--json", "--prompt", "4", "--tokens", "3", "--repeats", "2"];
    let expected = BTreeSet::from([
        "attention",
        "device",
        "params",
        "batch",
        "prompt_tokens",
        "new_tokens",
        "tokens_per_s",
        "ms_per_token",
        "prefill_ms",
        "cache_bytes_per_token",
        "load_ms",
        "weight_bytes_per_token",
        "cache_bytes",
        "matmul_tflop_per_s",
        "read_gb_per_s",
        "bandwidth_share",
        "dtype",
        "kv_dtype",
        "threads",
    ]);
    let presets = ["--layers", "1", "--width", "64", "--vocab", "64", "--attention", "gqa,mfa-kr"];
    let rows_of_presets =
        rows(&[&["bench", "decode"][..], &sizes, &presets, &["--kv-dtype", "bf16"]].concat());
    assert_eq!(rows_of_presets.len(), 2);
    for row in &rows_of_presets {
        assert_eq!(keys(row), expected);
        assert_eq!((&row["kv_dtype"], &row["dtype"]), (&"bf16".into(), &"f32".into()));
    }
    let model = trained().to_str().unwrap();
    let trained = rows(&[&["bench", "decode", "--model", model][..], &sizes].concat());
    assert_eq!(trained.len(), 1);
    assert_eq!((&trained[0]["attention"], keys(&trained[0])), (&"mfa".into(), expected));
    // Two layers, a key and a value of 16 numbers of 4 bytes.
    assert_eq!(trained[0]["cache_bytes_per_token"], 2 * 2 * 16 * 4);
}

#[test]
fn prefill_measures_trained_models() {
    let model = trained().to_str().unwrap();
    let rows = rows(&["bench", "prefill", "--json", "--model", model, "--prompt", "32", "--repeats", "2"]);
    let documented = [
        "attention",
        "device",
        "params",
        "prompt_tokens",
        "tokens_per_s",
        "ms",
        "load_ms",
        "dtype",
        "kv_dtype",
        "threads",
    ];
    assert_eq!((rows.len(), keys(&rows[0])), (1, BTreeSet::from(documented)));
    let speed = 32.0 / (rows[0]["ms"].as_f64().unwrap() / 1e3);
    assert!((rows[0]["tokens_per_s"].as_f64().unwrap() / speed - 1.0).abs() < 1e-6, "{rows:?}");
    let error = refused(trained(), &["bench", "prefill", "--model", model, "--prompt", "49"]);
    assert!(error.contains("expected at most max_position_embeddings = 48"), "{error}");
}

#[test]
fn ops_are_listed_with_shape_and_time() {
    let rows =
        rows(&["bench", "ops", "--json", "--batch=1", "--seq=8", "--width=64", "--vocab=64", "--repeats=1"]);
    assert!(rows.len() > 10);
    for row in rows {
        assert_eq!(keys(&row), BTreeSet::from(["op", "shape", "us", "gflop_s"]));
        assert!(row["us"].as_f64().is_some_and(|us| us > 0.0), "{row}");
    }
}

#[test]
fn sizes_out_of_range_are_refused() {
    let huge = usize::MAX.to_string();
    let train = ["bench", "train", "--steps=1"];
    let decode = ["bench", "decode", "--repeats=1"];
    for (command, option, value, told) in [
        (&train, "--attention", "linear", "expected one of mha, mqa, gqa, mla, mfa, mfa-kr, tpa"),
        (&train, "--steps", "0", "--steps is 0"),
        (&train, "--batch", "0", "--batch"),
        (&train, "--seq", "0", "--seq"),
        (&train, "--batch", &huge, "--batch"),
        (&train, "--layers", "0", "num_hidden_layers"),
        (&train, "--vocab", "0", "vocab_size"),
        (&train, "--width", "0", "--width"),
        (&train, "--width", &huge, "--width"),
        (&train, "--head-dim", "0", "--head-dim"),
        (&train, "--heads", "0", "heads"),
        (&train, "--query-rank", "0", "query_rank"),
        (&decode, "--prompt", "0", "--prompt"),
        (&decode, "--prompt", &huge, "--prompt"),
        (&decode, "--tokens", &huge, "--tokens"),
        (&decode, "--tokens", "999999999999", "max_position_embeddings"),
        (&decode, "--model", "nowhere", "nowhere"),
        (&["bench", "ops", "--repeats=1"], "--width", "65", "--width"),
        (&["bench", "ops", "--repeats=1"], "--vocab", "1", "--vocab"),
    ] {
        // An option given twice is refused as such, so the command's own value goes.
        let own: Vec<&str> = command.iter().filter(|given| !given.starts_with(option)).copied().collect();
        let error = refused(trained(), &[&own[..], &[option, value]].concat());
        assert!(error.contains(told), "{command:?} {option} {value}: {error}");
    }
    let model = trained().to_str().unwrap();
    let error =
        refused(trained(), &["bench", "decode", "--model", model, "--prompt", "40", "--tokens", "40"]);
    assert!(error.contains("expected at most max_position_embeddings = 48"), "{error}");
}
