use super::*;
use std::process::{Command, Stdio};

const ROOT: &str = "KEYFOLD_TEST_RUN_DIR";

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn a_new_run_is_made_once_and_then_resumed() {
    let folder = folder();
    let path = folder.path().join("runs/mfa");
    let run = RunDir::create(&path).unwrap();
    assert_eq!(run.path(), path);
    fs::write(run.config(), "").unwrap();
    drop(run);

    let error = RunDir::create(&path).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{} already has a run: resume it, or choose another folder", path.display())
    );
    fs::write(path.join(".config.toml.tmp-1-0"), "").unwrap();
    drop(RunDir::open(&path).unwrap());
    assert!(!path.join(".config.toml.tmp-1-0").exists());
}

#[test]
fn a_run_that_died_before_its_configuration_can_be_made_again() {
    let folder = folder();
    drop(RunDir::create(folder.path()).unwrap());
    assert!(matches!(RunDir::open(folder.path()), Err(RunDirError::NoRun { .. })));
    RunDir::create(folder.path()).unwrap();
}

#[test]
fn token_caches_of_a_refused_run_are_no_hindrance() {
    let folder = folder();
    let run = RunDir::create(folder.path()).unwrap();
    fs::create_dir(run.data()).unwrap();
    fs::write(run.data().join("tokens-0.bin"), "").unwrap();
    drop(run);
    let run = RunDir::create(folder.path()).unwrap();
    assert!(run.data().join("tokens-0.bin").exists());
}

#[test]
fn other_files_are_never_mixed_with_a_run() {
    let folder = folder();
    fs::write(folder.path().join("thesis.txt"), "").unwrap();
    let error = RunDir::create(folder.path()).unwrap_err().to_string();
    assert!(error.contains("is not empty (thesis.txt is there)"), "{error}");
    assert!(!folder.path().join(LOCK).exists());
}

#[test]
fn a_file_or_nothing_is_an_error_that_names_it() {
    let folder = folder();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    for error in [RunDir::create(&file).unwrap_err(), RunDir::open(&file).unwrap_err()] {
        assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
    }
    assert!(matches!(RunDir::open(folder.path().join("missing")), Err(RunDirError::NoRun { .. })));
}

#[test]
fn a_second_user_is_told_who_the_first_is() {
    let folder = folder();
    let run = RunDir::create(folder.path()).unwrap();
    let error = RunDir::create(folder.path()).unwrap_err().to_string();
    assert!(error.ends_with(&format!("is in use by another process ({})", std::process::id())), "{error}");

    fs::write(run.config(), "").unwrap();
    fs::write(folder.path().join(LOCK), b"\xff not a number").unwrap();
    assert!(matches!(RunDir::open(folder.path()), Err(RunDirError::InUse { process: None, .. })));
    drop(run);
    RunDir::open(folder.path()).unwrap();
}

#[test]
fn hold_a_run() {
    // Only as the child of the next test.
    let Ok(root) = std::env::var(ROOT) else { return };
    let run = RunDir::create(root).unwrap();
    fs::write(run.config(), "").unwrap();
    std::thread::sleep(std::time::Duration::from_secs(60));
}

#[test]
fn a_killed_process_holds_no_lock() {
    let folder = folder();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "run_dir::tests::hold_a_run"]).env(ROOT, folder.path()).stdout(Stdio::null());
    let mut child = child.spawn().unwrap();
    while !folder.path().join(CONFIG).exists() {
        assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let error = RunDir::open(folder.path()).unwrap_err();
    assert!(matches!(error, RunDirError::InUse { process: Some(id), .. } if id == child.id()), "{error}");
    child.kill().unwrap();
    child.wait().unwrap();
    RunDir::open(folder.path()).unwrap();
}
