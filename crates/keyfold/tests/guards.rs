//! Rules of the project that no compiler checks: layer order, file size, one list of attention designs, dependencies
//! with reasons, no accelerator switches outside of tensor and ops.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use keyfold_model::attention::DESIGNS;
use std::{
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All files below `folder` whose name ends in one of `endings`.
fn files(folder: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            found.extend(files(&path, endings));
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push(path);
        }
    }
    found
}

/// Every crate with the crates it may use, highest first: the arrows of ARCHITECTURE.md.
const LAYERS: &[(&str, &[&str])] = &[
    (
        "keyfold",
        &["server", "runner", "engine", "train", "plan", "eval", "data", "model", "ops", "tensor", "core"],
    ),
    ("train", &["data", "model", "ops", "tensor", "core"]),
    ("plan", &["model", "ops", "tensor", "core"]),
    ("eval", &["model", "ops", "tensor", "core"]),
    ("server", &["engine", "data"]),
    ("runner", &["engine", "model", "ops", "core", "tensor"]),
    ("engine", &["core"]),
    ("data", &["core"]),
    ("model", &["ops", "tensor", "core"]),
    ("ops", &["tensor", "core"]),
    ("tensor", &["core"]),
    ("core", &[]),
];

#[test]
fn dependencies_point_downwards() {
    let mut folders: Vec<String> = fs::read_dir(root().join("crates"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    folders.sort();
    let mut listed: Vec<&str> = LAYERS.iter().map(|(name, _)| *name).collect();
    listed.sort_unstable();
    assert_eq!(folders, listed, "crates/ and the list of layers differ");
    for (name, allowed) in LAYERS {
        for line in read(format!("crates/{name}/Cargo.toml")).lines() {
            let Some(used) = line.strip_prefix("keyfold-").and_then(|rest| rest.split(['.', ' ']).next())
            else {
                continue;
            };
            assert!(allowed.contains(&used), "crates/{name} may not depend on crates/{used}");
        }
    }
}

#[test]
fn files_stay_short() {
    for path in files(&root(), &[".rs", ".cu", ".cuh", ".py"]) {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= 600, "{} has {lines} lines: split it by purpose", path.display());
    }
}

#[test]
fn core_stays_small() {
    let lines: usize = files(&root().join("crates/core/src"), &[".rs"])
        .iter()
        .filter(|path| !path.ends_with("tests.rs"))
        .map(|path| fs::read_to_string(path).unwrap().lines().count())
        .sum();
    assert!(lines <= 600, "crates/core has {lines} lines: contracts only");
}

#[test]
fn every_op_has_a_reference_and_tests() {
    let shared = ["cuda", "gemm", "parallel", "selftest", "simd"];
    for entry in fs::read_dir(root().join("crates/ops/src")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !path.is_dir() || shared.contains(&name.as_str()) {
            continue;
        }
        for part in ["mod.rs", "reference.rs", "tests.rs"] {
            assert!(path.join(part).exists(), "crates/ops/src/{name} has no {part}");
        }
    }
}

#[test]
fn accelerator_switches_stay_in_tensor_and_ops() {
    for (name, _) in LAYERS.iter().filter(|(name, _)| !["tensor", "ops"].contains(name)) {
        for path in files(&root().join("crates").join(name).join("src"), &[".rs"]) {
            let text = fs::read_to_string(&path).unwrap();
            assert!(!text.contains("cfg(feature = \"cuda\")"), "{}: cuda switch", path.display());
        }
    }
}

/// Attention reads old rows of the cache and its plan before it waits for the kernel right before it (docs/cuda.md): all kernels
/// before that one have ended, as long as kernels let the next start only when they have waited themselves.
#[test]
fn kernels_let_the_next_start_when_they_have_waited() {
    // Between any two attentions stands one that waits first: attention itself.
    const EARLIER: [&str; 4] = ["linear/chain.cu", "linear/few.cu", "linear/skinny.cu", "append/kernel.cu"];
    let ops = root().join("crates/ops/src");
    let mut found = 0;
    for path in files(&ops, &[".cu", ".cuh"]) {
        let name = path.strip_prefix(&ops).unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        let mut before = "";
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            if line == "let_next_kernel_start();" && !EARLIER.contains(&name.as_str()) {
                assert!(
                    ["wait_for_previous_kernel();", "wait();"].contains(&before),
                    "{name}: lets the next kernel start without waiting"
                );
                found += 1;
            }
            before = line;
        }
    }
    assert!(found >= 10, "only {found} kernels let the next one start: are they written differently now?");
}

#[test]
fn the_list_of_designs_is_complete() {
    let readme = read("README.md");
    let lib = read("crates/model/src/attention/mod.rs");
    for (kind, summary) in DESIGNS {
        assert!(readme.contains(&format!("| `{kind}` |")), "README.md has no row for {kind}");
        assert!(lib.contains(&format!("= \"{kind}\", \"{summary}\"")), "{kind} is not in the list");
    }
    let modules = files(&root().join("crates/model/src/attention"), &[".rs"]);
    for path in modules {
        let text = fs::read_to_string(&path).unwrap();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if text.contains("impl Design for") || text.contains("grouped_design!(") {
            assert!(
                lib.contains(&format!("pub use {name}::")),
                "attention/{name}.rs is not in the list of designs"
            );
        }
    }
}

#[test]
fn every_dependency_has_its_reason() {
    let reasons = read("DEPENDENCIES.md");
    let mut tables = vec![read("Cargo.toml")];
    tables.extend(LAYERS.iter().map(|(name, _)| read(format!("crates/{name}/Cargo.toml"))));
    for table in tables {
        let mut inside = false;
        for line in table.lines() {
            if line.starts_with('[') {
                inside = line.contains("dependencies");
                continue;
            }
            let Some(name) = line.split(['=', '.', ' ']).next().filter(|name| inside && !name.is_empty())
            else {
                continue;
            };
            if !name.starts_with("keyfold") && !name.starts_with('#') {
                assert!(reasons.contains(&format!("| `{name}` |")), "DEPENDENCIES.md has no line for {name}");
            }
        }
    }
}

#[test]
fn the_readme_and_ci_name_the_same_test_command() {
    let command = "cargo test --release --workspace";
    assert!(read("README.md").contains(command));
    assert!(read(".ci/run").contains(command));
}

#[test]
fn architecture_fits_a_page() {
    let lines = read("ARCHITECTURE.md").lines().count();
    assert!(lines <= 80, "ARCHITECTURE.md has {lines} lines: one page");
}
