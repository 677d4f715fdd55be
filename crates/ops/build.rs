//! Compiles the CUDA kernels when the feature `cuda` is on: every `.cu` below `src` becomes a fat binary in OUT_DIR.
//!
//! `src/rms_norm/kernel.cu` becomes `rms_norm.fatbin`, `src/attention/forward.cu` `attention_forward.fatbin`. Nothing of
//! it needs a GPU. What ptxas says of registers and spills lies beside each, as `.log`; with `KEYFOLD_PTXAS=1` it is shown.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::SystemTime,
};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Machine code for Ampere and Ada, machine code for Hopper with its own instructions, and PTX for what comes after.
const TARGETS: [(&str, &str); 3] =
    [("compute_80", "sm_80"), ("compute_90a", "sm_90a"), ("compute_90", "compute_90")];

fn main() {
    if let Err(error) = build() {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn build() -> Outcome<()> {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    for variable in [
        "NVCC",
        "CUDA_HOME",
        "CUDA_PATH",
        "PATH",
        "KEYFOLD_CUDA_TARGETS",
        "KEYFOLD_PTXAS",
        "KEYFOLD_RACECHECK",
    ] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    println!("cargo:rerun-if-changed=src");
    let nvcc = nvcc()?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let mut sources = Vec::new();
    find(Path::new("src"), &mut sources)?;
    compile_all(&nvcc, &flags(), &sources, &out)?;
    if env::var_os("KEYFOLD_PTXAS").is_some() {
        for name in sources.iter().map(|source| name(source)) {
            report(&name, &fs::read_to_string(out.join(format!("{name}.log")))?);
        }
    }
    Ok(())
}

/// As many at a time as cargo allows.
fn compile_all(nvcc: &Path, flags: &[String], sources: &[PathBuf], out: &Path) -> Outcome<()> {
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    let next = AtomicUsize::new(0);
    let work = || -> Outcome<()> {
        while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
            compile(nvcc, flags, source, out)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| "a thread that compiled panicked")?)
    })
}

/// The compiler: `NVCC`, or `bin/nvcc` of `CUDA_HOME` or `CUDA_PATH`, or the one on the path.
fn nvcc() -> Outcome<PathBuf> {
    if let Some(nvcc) = env::var_os("NVCC") {
        return Ok(nvcc.into());
    }
    for variable in ["CUDA_HOME", "CUDA_PATH"] {
        if let Some(home) = env::var_os(variable) {
            let nvcc = Path::new(&home).join("bin/nvcc");
            if nvcc.exists() {
                return Ok(nvcc);
            }
        }
    }
    if Command::new("nvcc").arg("--version").output().is_ok() {
        return Ok("nvcc".into());
    }
    Err("the feature `cuda` needs NVIDIA's compiler nvcc, 12.8 or later: set NVCC to it, or CUDA_HOME to its toolkit, \
         or put it on the PATH (no GPU is needed to build; docs/cuda.md says how to get nvcc without one)"
        .into())
}

fn flags() -> Vec<String> {
    let mut flags: Vec<String> =
        ["-std=c++17", "-O3", "-fatbin", "--expt-relaxed-constexpr", "-Isrc/cuda", "-Xptxas=-v", "-lineinfo"]
            .map(String::from)
            .into();
    // For quick builds while a kernel is written: KEYFOLD_CUDA_TARGETS=sm_90a.
    let chosen = env::var("KEYFOLD_CUDA_TARGETS").unwrap_or_default();
    let chosen: Vec<&str> = chosen.split(',').filter(|name| !name.is_empty()).collect();
    for (arch, code) in TARGETS {
        if chosen.is_empty() || chosen.contains(&code) {
            flags.push(format!("-gencode=arch={arch},code={code}"));
        }
    }
    // For compute-sanitizer's racecheck: docs/cuda.md.
    if env::var_os("KEYFOLD_RACECHECK").is_some() {
        flags.push("-DKEYFOLD_RACECHECK".into());
    }
    flags
}

fn find(folder: &Path, sources: &mut Vec<PathBuf>) -> Outcome<()> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    entries.sort();
    for path in entries {
        if path.is_dir() {
            find(&path, sources)?;
        } else if path.extension().is_some_and(|extension| extension == "cu") {
            sources.push(path);
        }
    }
    Ok(())
}

/// The parts of the path below `src`, without a last part `kernel`.
fn name(source: &Path) -> String {
    let path = source.strip_prefix("src").unwrap_or(source).with_extension("");
    let mut parts: Vec<String> = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if parts.last().is_some_and(|last| last == "kernel") {
        parts.pop();
    }
    parts.join("_")
}

fn modified(path: &Path) -> SystemTime {
    fs::metadata(path).and_then(|data| data.modified()).unwrap_or(SystemTime::now())
}

/// When the newest of what nvcc read was written, the source among it: `dependencies` is a rule of make, as nvcc writes it.
fn newest_input(dependencies: &Path) -> Option<SystemTime> {
    let rule = fs::read_to_string(dependencies).ok()?;
    let (_, inputs) = rule.split_once(" : ")?;
    // Within a path a space has a backslash before it.
    let inputs = inputs.replace("\\\n", " ").replace("\\ ", "\0");
    inputs.split_whitespace().map(|path| modified(Path::new(&path.replace('\0', " ")))).max()
}

fn compile(nvcc: &Path, flags: &[String], source: &Path, out: &Path) -> Outcome<()> {
    let name = name(source);
    let [binary, log, dependencies] = ["fatbin", "log", "d"].map(|kind| out.join(format!("{name}.{kind}")));
    let command = format!("{} {}", nvcc.display(), flags.join(" "));
    let fresh =
        binary.exists() && newest_input(&dependencies).is_some_and(|newest| modified(&binary) > newest);
    let same = fs::read_to_string(&log).is_ok_and(|log| log.lines().next() == Some(&command));
    if !(fresh && same) {
        // Whatever ends this early leaves no log, so that the next build starts over.
        let _ = fs::remove_file(&log);
        let mut run = Command::new(nvcc);
        run.args(flags).arg("-MD").arg("-MF").arg(&dependencies).arg(source).arg("-o").arg(&binary);
        let run = run.output().map_err(|error| format!("{}: {error}", nvcc.display()))?;
        let told = String::from_utf8_lossy(&run.stderr);
        if !run.status.success() {
            return Err(format!("{}: {}\n{told}", source.display(), run.status).into());
        }
        fs::write(&log, format!("{command}\n{told}"))?;
    }
    Ok(())
}

/// A line for each kernel: registers, spills, shared memory.
fn report(name: &str, log: &str) {
    let mut function = "";
    let mut spills = "";
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            function = rest;
        } else if line.contains("bytes spill stores") {
            spills = line.trim();
        } else if let Some((_, used)) = line.split_once(": Used ") {
            let function = function.replace("' for '", " ");
            println!("cargo:warning={name}: {}: {used}; {spills}", function.trim_end_matches('\''));
        }
    }
}
