use super::*;
use std::{hint::black_box, process::Command};

/// Set in a child that runs one test only: the mark is the process's, and other tests move it.
const ALONE: &str = "KEYFOLD_TEST_MEMORY_ALONE";

/// Runs the named test again in a process of its own, and returns whether this is that process.
fn alone(test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    let child = child.args(["--exact", &format!("memory::tests::{test}")]).env(ALONE, "1");
    assert!(child.output().unwrap().status.success());
    false
}

#[test]
fn the_peak_sees_touched_memory() {
    if !alone("the_peak_sees_touched_memory") {
        return;
    }
    let Some(before) = peak_rss_mib() else { return };
    assert!(before > 0.5, "{before}");
    black_box(vec![1_u8; 256 << 20]);
    let after = peak_rss_mib().unwrap();
    assert!(after >= 256.0 && after >= before, "{before} {after}");
}

#[test]
fn a_scope_forgets_what_was_before() {
    if !alone("a_scope_forgets_what_was_before") {
        return;
    }
    black_box(vec![1_u8; 512 << 20]);
    let scope = PeakScope::start();
    black_box(vec![1_u8; 64 << 20]);
    if let Some(peak) = scope.peak_mib() {
        assert!((64.0..128.0).contains(&peak), "{peak}");
    }
}

#[test]
fn no_peak_is_better_than_a_wrong_one() {
    assert_eq!(PeakScope { resettable: false }.peak_mib(), None);
}

#[test]
fn status_is_parsed_strictly() {
    assert_eq!(high_water_mib("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n"), Some(2.0));
    for wrong in ["", "VmHWM:", "VmHWM: kB", "VmHWM: 12", "VmHWM: -1 kB", "VmHWM: 1 MB", "xVmHWM: 1 kB"] {
        assert_eq!(high_water_mib(wrong), None, "{wrong}");
    }
}

#[cfg(unix)]
#[test]
fn the_two_sources_agree() {
    black_box(vec![1_u8; 128 << 20]);
    assert!(usage_mib().unwrap() >= 128.0);
}
