//! A sequence of complete folders and a pointer to the newest.
//!
//! ```text
//! checkpoints/
//!   step-00000100/     complete and never changed
//!   step-00000200/
//!   latest             one line: step-00000200
//! ```
//!
//! To publish: (1) write a temporary folder and flush it, (2) rename it to its final name, (3) replace `latest`,
//! (4) remove what is too old, by renaming it to a temporary name first. A process killed before 3 leaves `latest` at
//! the old version, one killed after 3 at the new one; both are complete. There is no moment without a good version.
//!
//! A pointer file is used, not a symbolic link, because a reader resolves it once and then reads all its files from one
//! version, even when a newer one arrives meanwhile.

use super::{AtomicError, Temporary, attempt, create_folder_atomic, remove, remove_leftovers, write_atomic};
use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

const POINTER: &str = "latest";
const PREFIX: &str = "step-";

/// A folder of numbered, complete versions. One process writes; any number read.
#[derive(Debug)]
pub struct Versions {
    root: PathBuf,
}

/// The folder name of a version: its step, and a repeat when the step was published again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    step: u64,
    repeat: u32,
}

impl Versions {
    /// Opens `root` for writing: makes it if needed and removes what a killed process left half written.
    ///
    /// # Errors
    /// When the folder cannot be made or cleaned.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, AtomicError> {
        let root = root.into();
        attempt("create", &root, || fs::create_dir_all(&root))?;
        remove_leftovers(&root)?;
        Ok(Self { root })
    }

    /// The newest complete version below `root`, for readers; `None` before the first.
    ///
    /// # Errors
    /// When the pointer cannot be read, or names no version that is there.
    pub fn latest(root: &Path) -> Result<Option<PathBuf>, AtomicError> {
        Ok(current(root)?.map(|version| version.path(root)))
    }

    /// Makes the files that `write` puts into the empty folder it is given the newest version, keeps the `keep`
    /// newest ones (the new one always), and returns the folder of the new one. Versions of this step or a later one are
    /// removed: they are of a run that was taken back. With `keep` of 2 or more, a reader that has just found a version
    /// can still read it when the next one arrives.
    ///
    /// # Errors
    /// When `write` or the system fails. The version that was newest then still is, unless all that failed was to remove
    /// an old one.
    pub fn publish<E: From<AtomicError>>(
        &self,
        step: u64,
        keep: usize,
        write: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, E> {
        let repeat = match current(&self.root)? {
            Some(current) if current.step == step => current.repeat.wrapping_add(1),
            _ => 0,
        };
        let version = Version { step, repeat };
        let path = version.path(&self.root);
        // Written by a process that died before it could move the pointer: nobody has read it.
        if path.exists() {
            self.remove_version(version)?;
        }
        create_folder_atomic(&path, write)?;
        self.point_to(version)?;
        self.prune(version, keep)?;
        Ok(path)
    }

    /// Makes the version of `step` the newest and removes later ones: a run goes back to it.
    ///
    /// # Errors
    /// When there is no such version or the system fails.
    pub fn rewind(&self, step: u64) -> Result<PathBuf, AtomicError> {
        let target = self.all()?.into_iter().rfind(|version| version.step == step);
        let target = attempt("find a version of this step in", &self.root, || {
            target.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no {PREFIX}{step:08}")))
        })?;
        self.point_to(target)?;
        self.prune(target, usize::MAX)?;
        Ok(target.path(&self.root))
    }

    /// The steps of all complete versions, oldest first.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn steps(&self) -> Result<Vec<u64>, AtomicError> {
        Ok(self.all()?.into_iter().map(|version| version.step).collect())
    }

    fn all(&self) -> Result<Vec<Version>, AtomicError> {
        let mut all = Vec::new();
        for entry in
            attempt("list", &self.root, || fs::read_dir(&self.root)?.collect::<io::Result<Vec<_>>>())?
        {
            all.extend(entry.file_name().to_str().and_then(Version::parse));
        }
        all.sort_unstable();
        Ok(all)
    }

    fn point_to(&self, version: Version) -> Result<(), AtomicError> {
        write_atomic(&self.root.join(POINTER), |file| writeln!(file, "{}", version.name()))
    }

    /// Removes all but `current` and the `keep - 1` newest before it.
    fn prune(&self, current: Version, keep: usize) -> Result<(), AtomicError> {
        let mut older = 0;
        for version in self.all()?.into_iter().rev().filter(|version| *version != current) {
            older += usize::from(version.step < current.step);
            if version.step >= current.step || older >= keep {
                self.remove_version(version)?;
            }
        }
        Ok(())
    }

    /// Removes a version so that nobody ever finds it with some of its files gone.
    fn remove_version(&self, version: Version) -> Result<(), AtomicError> {
        let path = version.path(&self.root);
        let temporary = Temporary::beside(&path)?;
        attempt("rename", &path, || fs::rename(&path, &temporary.path))?;
        attempt("remove", &path, || remove(&temporary.path))
    }
}

/// The version that the pointer below `root` names.
fn current(root: &Path) -> Result<Option<Version>, AtomicError> {
    /// Longer than any version's name.
    const LIMIT: u64 = 64;
    let pointer = root.join(POINTER);
    let mut text = String::new();
    match fs::File::open(&pointer) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => attempt("read", &pointer, || opened?.take(LIMIT).read_to_string(&mut text))?,
    };
    let version = attempt("read", &pointer, || {
        let version = Version::parse(text.trim_end());
        version
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} names no version")))
    })?;
    attempt("open", &version.path(root), || fs::metadata(version.path(root)))?;
    Ok(Some(version))
}

impl Version {
    fn name(self) -> String {
        match self.repeat {
            0 => format!("{PREFIX}{:08}", self.step),
            repeat => format!("{PREFIX}{:08}.{repeat}", self.step),
        }
    }

    fn path(self, root: &Path) -> PathBuf {
        root.join(self.name())
    }

    fn parse(name: &str) -> Option<Self> {
        let digits = name.strip_prefix(PREFIX)?;
        let (step, repeat) = digits.split_once('.').unwrap_or((digits, "0"));
        let version = Self { step: step.parse().ok()?, repeat: repeat.parse().ok()? };
        // Only names that `name` makes, so that no two names are one version.
        (version.name() == name).then_some(version)
    }
}
