//! Starting the binary, and a small trained model that many tests read.

use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
};

pub(crate) const TINY: &str = r#"
[model]
hidden_size = 32
num_hidden_layers = 2
intermediate_size = 48
max_position_embeddings = 48

[model.attention]
kind = "mfa"
heads = 4
head_dim = 16

[data]
source = "text.txt"
seq_len = 32

[train]
steps = 20
batch_size = 2
lr = 5e-3
schedule = { kind = "cosine", warmup = 2, final_ratio = 0.1 }
log_every = 1
eval_every = 0
eval_tokens = 256
"#;

/// The command, without any of this environment's settings.
pub(crate) fn keyfold<S: AsRef<std::ffi::OsStr>>(folder: &Path, args: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keyfold"));
    command.current_dir(folder).args(args).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

pub(crate) fn run<S: AsRef<std::ffi::OsStr>>(folder: &Path, args: &[S]) -> Output {
    keyfold(folder, args).output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Standard output of a command that must work.
pub(crate) fn succeed<S: AsRef<std::ffi::OsStr>>(folder: &Path, args: &[S]) -> String {
    let output = run(folder, args);
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
    text(&output.stdout)
}

/// Standard error of a command that must be refused: a plain message, no panic.
pub(crate) fn refused<S: AsRef<std::ffi::OsStr>>(folder: &Path, args: &[S]) -> String {
    refusal(&run(folder, args))
}

pub(crate) fn refusal(output: &Output) -> String {
    let error = text(&output.stderr);
    assert!(matches!(output.status.code(), Some(1 | 2)), "{}: {error}", output.status);
    assert!(error.contains("error: "), "{error}");
    assert!(!error.contains("panicked"), "{error}");
    error
}

pub(crate) fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap_or_else(|| panic!("not an object: {value}")).keys().map(String::as_str).collect()
}

/// A new folder with a text and the configuration of a tiny model in it.
pub(crate) fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let documents: Vec<String> = (0..60)
        .map(|i| {
            format!("Day {i}: the old cat sat on the mat number {} and slept.\n<|endoftext|>\n", i * 7 % 10)
        })
        .collect();
    fs::write(folder.path().join("text.txt"), documents.concat()).unwrap();
    fs::write(folder.path().join("tiny.toml"), TINY).unwrap();
    folder
}

/// The folder of a finished run, to be read only.
pub(crate) fn trained() -> &'static Path {
    static RUN: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, run) = RUN.get_or_init(|| {
        let folder = workplace();
        let told = succeed(folder.path(), &["train", "tiny.toml", "--out", "run"]);
        assert!(told.trim_end().ends_with("step-00000020"), "{told}");
        let run = folder.path().join("run");
        (folder, run)
    });
    run
}

/// The newest checkpoint in `run`.
pub(crate) fn newest(run: &Path) -> PathBuf {
    keyfold_train::atomic::Versions::latest(&run.join("checkpoints")).unwrap().unwrap()
}

/// A copy of the trained model's folder that a test may damage.
pub(crate) fn model_copy(to: &Path) -> PathBuf {
    let (from, to) = (newest(trained()), to.join("model"));
    fs::create_dir_all(&to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
    to
}
