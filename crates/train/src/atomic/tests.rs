use super::*;
use std::{
    process::{Command, Stdio},
    time::Duration,
};
use tempfile::TempDir;

const DIE_AT: &str = "KEYFOLD_TEST_DIE_AT";
const ROOT: &str = "KEYFOLD_TEST_ROOT";

/// Kills a child process before its n-th step; called by [`attempt`].
pub(super) fn maybe_die() {
    static STEPS: AtomicU64 = AtomicU64::new(0);
    let now = STEPS.fetch_add(1, Ordering::Relaxed);
    if std::env::var(DIE_AT).is_ok_and(|at| at.parse() == Ok(now)) {
        std::process::abort();
    }
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn writes_and_replaces_a_file() {
    let folder = folder();
    let path = folder.path().join("weights");
    write_atomic(&path, |file| file.write_all(b"old")).unwrap();
    assert_eq!(write_atomic(&path, |file| file.write_all(b"new").map(|()| 7)).unwrap(), 7);
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(names(folder.path()), ["weights"]);
}

#[test]
fn a_failing_writer_leaves_the_old_file() {
    let folder = folder();
    let path = folder.path().join("weights");
    fs::write(&path, "old").unwrap();
    let error = write_atomic(&path, |file| {
        file.write_all(&[1; 1 << 20])?;
        Err::<(), _>(io::Error::from(io::ErrorKind::StorageFull))
    })
    .unwrap_err();
    assert!(error.to_string().starts_with(&format!("cannot write {}: ", path.display())), "{error}");
    assert_eq!(error.source.kind(), io::ErrorKind::StorageFull);
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(names(folder.path()), ["weights"]);
}

#[test]
fn a_full_disk_is_noticed_even_when_only_the_buffer_was_full() {
    let Ok(full) = OpenOptions::new().write(true).open("/dev/full") else { return };
    let error = write_through(Path::new("weights"), full, |file| file.write_all(b"short")).unwrap_err();
    assert_eq!(error.source.kind(), io::ErrorKind::StorageFull);
    assert!(error.to_string().contains("weights"), "{error}");
}

#[test]
fn hostile_paths_are_errors() {
    let folder = folder();
    let nothing = |_: &mut BufWriter<File>| Ok(());
    assert!(write_atomic(Path::new(""), nothing).is_err());
    assert!(write_atomic(Path::new("/"), nothing).is_err());
    assert!(write_atomic(&folder.path().join(".."), nothing).is_err());
    assert!(write_atomic(&folder.path().join("missing/file"), nothing).is_err());
    assert!(write_atomic(&folder.path().join("a\0b"), nothing).is_err());
    let taken = folder.path().join("taken");
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("file"), "").unwrap();
    assert!(write_atomic(&taken, nothing).is_err());
    assert_eq!(names(folder.path()), ["taken"]);
}

#[test]
fn a_folder_appears_whole_or_not_at_all() {
    let folder = folder();
    let path = folder.path().join("model");
    let failed = create_folder_atomic(&path, |inside| {
        write_atomic(&inside.join("config.json"), |file| file.write_all(b"{}"))?;
        write_atomic(&inside.join("weights"), |_| Err::<(), _>(io::ErrorKind::StorageFull.into()))
    });
    assert_eq!(failed.unwrap_err().source.kind(), io::ErrorKind::StorageFull);
    assert_eq!(names(folder.path()), [""; 0]);

    create_folder_atomic(&path, |inside| {
        fs::create_dir(inside.join("deep")).unwrap();
        write_atomic(&inside.join("deep/config.json"), |file| file.write_all(b"{}"))
    })
    .unwrap();
    assert_eq!(fs::read(path.join("deep/config.json")).unwrap(), b"{}");

    let again = create_folder_atomic(&path, |_| -> Result<(), AtomicError> { panic!("not called") });
    assert_eq!(again.unwrap_err().source.kind(), io::ErrorKind::AlreadyExists);
}

#[test]
fn only_leftovers_are_removed() {
    let folder = folder();
    let keep = [".gitignore", ".mine.tmp-", ".mine.tmp-12", ".mine.tmp-12-x", "mine.tmp-12-3", "weights"];
    for name in keep.iter().chain(&[".weights.tmp-12-3"]) {
        fs::write(folder.path().join(name), "").unwrap();
    }
    fs::create_dir_all(folder.path().join(".step-1.tmp-99-0/deep")).unwrap();
    assert_eq!(remove_leftovers(folder.path()).unwrap(), 2);
    assert_eq!(names(folder.path()), keep);
}

/// Writes three files that all hold `step`, as a checkpoint would.
fn write_version(step: u64) -> impl FnOnce(&Path) -> Result<(), AtomicError> {
    move |inside| {
        fs::create_dir(inside.join("optimizer")).unwrap();
        for name in ["config", "weights", "optimizer/state"] {
            write_atomic(&inside.join(name), |file| write!(file, "{step}"))?;
        }
        Ok(())
    }
}

/// The step of the newest version, after checking that it is whole.
fn latest_step(root: &Path) -> Option<u64> {
    let path = Versions::latest(root).unwrap()?;
    Some(check_version(&path))
}

fn check_version(path: &Path) -> u64 {
    let read = |name| fs::read_to_string(path.join(name)).unwrap();
    let step = read("weights");
    assert_eq!([read("config"), read("optimizer/state")], [step.clone(), step.clone()], "{}", path.display());
    step.parse().unwrap()
}

#[test]
fn versions_are_published_kept_and_taken_back() {
    let folder = folder();
    let root = folder.path().join("runs/a/checkpoints");
    let versions = Versions::open(&root).unwrap();
    assert_eq!(Versions::latest(&root).unwrap(), None);
    for step in [100, 200, 300, 400] {
        versions.publish(step, 3, write_version(step)).unwrap();
        assert_eq!(latest_step(&root), Some(step));
    }
    assert_eq!(names(&root), ["latest", "step-00000200", "step-00000300", "step-00000400"]);

    assert_eq!(versions.rewind(300).unwrap(), root.join("step-00000300"));
    assert_eq!(versions.steps().unwrap(), [200, 300]);
    assert_eq!(latest_step(&root), Some(300));
    assert!(versions.rewind(400).unwrap_err().to_string().contains("step-00000400"));

    // The same step again never touches the folder that readers are in.
    assert_eq!(versions.publish(300, 3, write_version(300)).unwrap(), root.join("step-00000300.1"));
    assert_eq!(versions.publish(300, 3, write_version(300)).unwrap(), root.join("step-00000300.2"));
    assert_eq!(names(&root), ["latest", "step-00000200", "step-00000300.2"]);

    versions.publish(100, 0, write_version(100)).unwrap();
    assert_eq!(names(&root), ["latest", "step-00000100"]);
}

#[test]
fn a_failed_publication_changes_nothing() {
    let folder = folder();
    let versions = Versions::open(folder.path()).unwrap();
    versions.publish(1, 1, write_version(1)).unwrap();
    let failed = versions.publish(2, 1, |inside| {
        fs::write(inside.join("weights"), "2").unwrap();
        Err(AtomicError { action: "write", path: inside.into(), source: io::ErrorKind::StorageFull.into() })
    });
    assert!(failed.is_err());
    assert_eq!(names(folder.path()), ["latest", "step-00000001"]);
    assert_eq!(latest_step(folder.path()), Some(1));
}

#[test]
fn a_hostile_pointer_is_an_error() {
    let folder = folder();
    let hostile: [&[u8]; 9] = [
        b"",
        b"../../etc",
        b"step-1",
        b"step-00000001/..",
        b"step-00000001.0",
        b"step-00000009",
        b"step-99999999999999999999",
        b"\xff\xfe",
        &[b'0'; 4096],
    ];
    Versions::open(folder.path()).unwrap().publish(1, 1, write_version(1)).unwrap();
    for text in hostile {
        fs::write(folder.path().join("latest"), text).unwrap();
        let error = Versions::latest(folder.path()).unwrap_err();
        assert!(error.path.starts_with(folder.path()), "{error}");
    }
}

fn child(test: &str, root: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("atomic::tests::{test}"), "--test-threads=1"]);
    command.env(ROOT, root).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

#[test]
fn publish_step_2() {
    // Only as the child of the next test.
    let Ok(root) = std::env::var(ROOT) else { return };
    Versions::open(root).unwrap().publish(2, 1, write_version(2)).unwrap();
}

#[test]
fn a_process_killed_before_any_step_leaves_a_whole_version() {
    let folder = folder();
    for die_at in 0.. {
        let root = folder.path().join(die_at.to_string());
        Versions::open(&root).unwrap().publish(1, 1, write_version(1)).unwrap();
        let status = child("publish_step_2", &root).env(DIE_AT, die_at.to_string()).status().unwrap();
        let found = latest_step(&root);
        assert!(found == Some(1) || found == Some(2), "{found:?} after dying at {die_at}");

        // The next start cleans up, and goes on as if nothing had happened.
        let versions = Versions::open(&root).unwrap();
        assert!(names(&root).iter().all(|name| !name.starts_with('.')), "{:?}", names(&root));
        versions.steps().unwrap().iter().for_each(|step| {
            check_version(&root.join(format!("step-{step:08}")));
        });
        versions.publish(2, 1, write_version(2)).unwrap();
        assert_eq!(latest_step(&root), Some(2));
        assert_eq!(names(&root).len(), 2);

        if status.success() {
            assert_eq!(found, Some(2));
            assert!(die_at > 25, "the child was killed at {die_at} steps only");
            break;
        }
    }
}

#[test]
fn publish_for_ever() {
    // Only as the child of the next test.
    let Ok(root) = std::env::var(ROOT) else { return };
    let versions = Versions::open(root).unwrap();
    for step in 1.. {
        versions.publish(step, 2, write_version(step)).unwrap();
    }
}

#[test]
fn a_process_killed_at_any_time_leaves_a_whole_version() {
    let folder = folder();
    let mut seen = 0;
    for round in 0..15 {
        let mut process = child("publish_for_ever", folder.path()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(15 + 7 * round));
        process.kill().unwrap();
        process.wait().unwrap();
        seen += u64::from(latest_step(folder.path()).is_some());
        Versions::open(folder.path()).unwrap();
        assert!(names(folder.path()).len() <= 4, "{:?}", names(folder.path()));
    }
    assert!(seen > 0, "no child lived long enough to publish");
}
