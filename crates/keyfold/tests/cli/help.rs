//! Help, corpora, and configurations that are refused.

use crate::support::{keyfold, refused, run, succeed, text, workplace};
use std::{fs, path::Path, process::Stdio};

/// The subcommands that a help text lists.
fn subcommands(help: &str) -> Vec<String> {
    let listed = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| line.starts_with("  "));
    listed
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

fn walk(path: &[String], seen: &mut Vec<String>) {
    let help = succeed(Path::new("."), &[path, &["--help".to_owned()]].concat());
    assert!(help.contains("Usage: keyfold"), "{path:?}: {help}");
    seen.push(path.join(" "));
    for name in subcommands(&help) {
        walk(&[path, &[name]].concat(), seen);
    }
}

#[test]
fn every_command_has_help() {
    let mut seen = Vec::new();
    walk(&[], &mut seen);
    for command in [
        "compare",
        "train",
        "generate",
        "logits",
        "inspect",
        "plan",
        "table",
        "chat",
        "perplexity",
        "export",
        "download",
        "bench train",
        "bench decode",
        "bench prefill",
        "serve",
        "bench serve",
        "bench ops",
        "data fetch",
        "data list",
    ] {
        assert!(seen.iter().any(|name| name == command), "{command} is not among {seen:?}");
    }
    let version = succeed(Path::new("."), &["--version"]);
    assert_eq!(version.trim(), format!("keyfold {}", env!("CARGO_PKG_VERSION")));
    assert_eq!(run(Path::new("."), &["compute"]).status.code(), Some(2));
}

#[test]
fn corpora_are_listed_and_unknown_ones_refused() {
    let list = succeed(Path::new("."), &["data", "list"]);
    let names: Vec<&str> = list.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.contains(&"tinyshakespeare"), "{list}");
    let error = refused(Path::new("."), &["data", "fetch", "nosuch"]);
    for name in names {
        assert!(error.contains(name), "{name} is not in: {error}");
    }
}

#[test]
fn without_a_connection_a_plain_message_tells_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    // Nothing listens on the discard port.
    let output = keyfold(folder.path(), &["data", "fetch", "tinyshakespeare"])
        .env("HF_ENDPOINT", "http://127.0.0.1:9")
        .envs(["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"].map(|name| (name, "")))
        .output()
        .unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.starts_with("error: corpus tinyshakespeare: the hub could not be reached"), "{error}");
    assert!(error.contains("pass its path as the data source") && !error.contains("panicked"), "{error}");
    let output = keyfold(folder.path(), &["download", "owner/model"])
        .env("HF_ENDPOINT", "http://127.0.0.1:9")
        .envs(["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"].map(|name| (name, "")))
        .output()
        .unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.starts_with("error: model owner/model: the hub could not be reached"), "{error}");
    assert!(!folder.path().join("model").exists());
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let mut child = keyfold(Path::new("."), &["data", "list"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn configurations_that_cannot_be_used_are_refused() {
    let folder = workplace();
    let path = folder.path();
    for (args, told) in [
        (vec!["train"], "required"),
        (vec!["train", "none.toml"], "none.toml"),
        (vec!["train", "tiny.toml", "--set", "train.speed=1"], "speed"),
        (vec!["train", "tiny.toml", "--set", "train.lr"], "--set train.lr: expected key=value"),
        (vec!["train", "tiny.toml", "--set", "train.lr=-1"], "`train.lr` is -1"),
        (vec!["train", "tiny.toml", "--set", "model.hidden_size=0"], "`model.hidden_size` is 0"),
        (vec!["train", "tiny.toml", "--set", "model.attention.head_dim=15"], "model.attention.head_dim"),
        (vec!["train", "tiny.toml", "--set", "data.source=nowhere.txt"], "nowhere.txt"),
        (vec!["train", "tiny.toml", "--set", "data.source=synthetic:songs"], "synthetic:songs"),
        (vec!["train", "tiny.toml", "--set", "data.tokenizer=bpe:9"], "bpe:9"),
        (vec!["train", "tiny.toml", "--resume"], "has no run"),
        (vec!["train", "--resume", "--out", "nowhere"], "nowhere"),
    ] {
        let error = refused(path, &args);
        assert!(error.contains(told), "{args:?}: {error}");
    }
    fs::write(path.join("bad.toml"), "[model]\nhidden_size = \n").unwrap();
    let error = refused(path, &["train", "bad.toml"]);
    assert!(error.contains("bad.toml") && error.contains("line 2"), "{error}");
    // Nothing of this has taken the default folder, runs/tiny.
    let told = succeed(path, &["train", "tiny.toml", "--set", "train.steps=1"]);
    assert!(told.trim_end().ends_with("step-00000001"), "{told}");
    assert!(path.join("runs/tiny/config.toml").exists());
    let error = refused(path, &["train", "tiny.toml"]);
    assert!(error.contains("already has a run"), "{error}");
}
