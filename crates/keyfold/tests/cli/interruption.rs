//! Runs that are stopped by Ctrl-C or killed in the middle of a save end like runs that were left alone.

use crate::support::{keyfold, newest, refused, succeed, text, workplace};
use keyfold_train::metrics::{self, Record};
use std::{
    fs,
    path::Path,
    process::{Child, Output, Stdio},
    time::{Duration, Instant},
};

/// Weights, moments and metrics of the newest checkpoint, without times.
fn result(run: &Path) -> (String, Vec<u8>, Vec<u8>, Vec<Record>) {
    let dir = newest(run);
    let mut records = metrics::read(&run.join("metrics.jsonl")).unwrap();
    for record in &mut records {
        (record.elapsed_s, record.tokens_per_s) = (0.0, 0.0);
    }
    let read = |name| fs::read(dir.join(name)).unwrap();
    let name = dir.file_name().unwrap().to_string_lossy().into_owned();
    (name, read("model.safetensors"), read("training.safetensors"), records)
}

fn assert_same(run: &Path, whole: &Path) {
    let (got, want) = (result(run), result(whole));
    assert_eq!((got.0, got.3), (want.0, want.3));
    assert!(got.1 == want.1, "the weights differ");
    assert!(got.2 == want.2, "the moments differ");
}

fn begin(folder: &Path, args: &[&str]) -> Child {
    keyfold(folder, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn wait_for(what: &str, child: &mut Child, mut ready: impl FnMut() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < Duration::from_secs(60), "no {what} after a minute");
        assert!(child.try_wait().unwrap().is_none(), "ended before {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn lines(path: &Path) -> usize {
    fs::read(path).map_or(0, |bytes| bytes.iter().filter(|byte| **byte == b'\n').count())
}

fn steps(n: u32) -> String {
    format!("train.steps={n}")
}

#[test]
fn a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been() {
    let folder = workplace();
    let path = folder.path();
    let steps = steps(60);
    let begun = ["train", "tiny.toml", "--set", &steps, "--set", "train.save_every=1", "--out"];
    succeed(path, &[&begun[..], &["whole"]].concat());

    let out = path.join("killed");
    let mut child = begin(path, &[&begun[..], &["killed"]].concat());
    wait_for("checkpoint", &mut child, || out.join("checkpoints/latest").exists());
    let mut state = 12_345u64;
    let mut kills = 0;
    while kills < 8 {
        // From before anything is read to after several saves.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::sleep(Duration::from_millis((state >> 33) % 60));
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        child = begin(path, &["train", "--resume", "--out", "killed"]);
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_same(&out, &path.join("whole"));
    let left: Vec<_> =
        fs::read_dir(out.join("checkpoints")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "two checkpoints and the pointer: {left:?}");
}

/// Sends a signal by name.
#[cfg(unix)]
fn signal(child: &Child, name: &str) {
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args([name, &id]).status().unwrap().success());
}

#[cfg(unix)]
fn stop(child: Child, name: &str) -> Output {
    signal(&child, name);
    child.wait_with_output().unwrap()
}

#[cfg(unix)]
#[test]
fn the_first_ctrl_c_saves_and_the_run_goes_on_later() {
    let folder = workplace();
    let path = folder.path();
    let steps = steps(1500);
    let begun = ["train", "tiny.toml", "--set", &steps, "--set", "train.save_every=0", "--out"];
    let out = path.join("stopped");
    let metrics = out.join("metrics.jsonl");
    let mut child = begin(path, &[&begun[..], &["stopped"]].concat());
    wait_for("update", &mut child, || lines(&metrics) > 3);
    // Nobody else may train there meanwhile.
    let error = refused(path, &["train", "--resume", "--out", "stopped"]);
    assert!(error.contains("is in use by another process"), "{error}");

    let output = stop(child, "-INT");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("stopping after this step"), "{}", text(&output.stderr));
    let told = text(&output.stdout);
    assert!(told.contains("stopped; go on with: keyfold train --resume --out stopped"), "{told}");
    assert!(newest(&out).exists());

    // Another time by SIGTERM, with another number of threads.
    let before = lines(&metrics);
    let mut child = begin(path, &["train", "--resume", "--out", "stopped", "--threads", "1"]);
    wait_for("update", &mut child, || lines(&metrics) > before + 3);
    assert!(stop(child, "-TERM").status.success());
    let told = succeed(path, &["train", "--resume", "--out", "stopped"]);
    assert!(told.trim_end().ends_with("step-00001500"), "{told}");
    succeed(path, &[&begun[..], &["whole", "--threads", "1"]].concat());
    assert_same(&out, &path.join("whole"));
}
