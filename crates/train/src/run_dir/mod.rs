//! The folder of one run, and the lock that keeps a second process out of it.
//!
//! ```text
//! <run>/
//!   .lock              held, not present, means in use; holds the process id for the error message
//!   config.toml        the resolved configuration; a folder with it holds a run
//!   metrics.jsonl      see `metrics`
//!   data/              caches of tokens and tokenizers, named by what they are made of
//!   checkpoints/       see `atomic::Versions`
//!   tensorboard/       see `tensorboard`
//! ```

use crate::atomic::{AtomicError, remove_leftovers};
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

const LOCK: &str = ".lock";
const CONFIG: &str = "config.toml";
const DATA: &str = "data";

/// A run's folder, locked until this is dropped or the process ends, in whatever way.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    _lock: File,
}

/// Why a folder cannot be trained into.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// A new run was asked for where there is one.
    #[error("{} already has a run: resume it, or choose another folder", path.display())]
    HasRun {
        /// The folder.
        path: PathBuf,
    },
    /// A new run was asked for in a folder with other files.
    #[error("{} is not empty ({} is there): choose another folder", path.display(), found.display())]
    NotEmpty {
        /// The folder.
        path: PathBuf,
        /// The name of something in it.
        found: PathBuf,
    },
    /// A run was to be resumed where there is none.
    #[error("{} has no run: there is no {CONFIG} in it", path.display())]
    NoRun {
        /// The folder.
        path: PathBuf,
    },
    /// Another process trains there.
    #[error("{} is in use by another process{}", path.display(), process.map_or(String::new(), |id| format!(" ({id})")))]
    InUse {
        /// The folder.
        path: PathBuf,
        /// Its process id, where it could be read.
        process: Option<u32>,
    },
    /// The folder cannot be made, read or locked.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What a killed process left cannot be removed.
    #[error(transparent)]
    Leftovers(#[from] AtomicError),
}

impl RunDir {
    /// Makes and locks the folder of a new run; it may exist if it is empty but for `data/`, which a run that was
    /// refused after its data was read leaves for the next try.
    ///
    /// # Errors
    /// When it holds a run or anything else, is in use, or cannot be made.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, RunDirError> {
        let path = path.into();
        fs::create_dir_all(&path).map_err(io_error(&path))?;
        refuse_contents(&path)?;
        let run = Self::lock(path)?;
        // A run may have begun between the first look and the lock.
        refuse_contents(&run.path)?;
        Ok(run)
    }

    /// Locks the folder of a run that is to be resumed, and removes what a killed process left half written.
    ///
    /// # Errors
    /// When it holds no run, is in use, or cannot be read.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, RunDirError> {
        let path = path.into();
        if !path.join(CONFIG).is_file() {
            return Err(RunDirError::NoRun { path });
        }
        let run = Self::lock(path)?;
        remove_leftovers(&run.path)?;
        Ok(run)
    }

    fn lock(path: PathBuf) -> Result<Self, RunDirError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut lock = options.open(path.join(LOCK)).map_err(io_error(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let process =
                    (&lock).take(16).read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                return Err(RunDirError::InUse { path, process });
            }
            Err(TryLockError::Error(source)) => return Err(RunDirError::Io { path, source }),
        }
        let mut write_id = || {
            lock.set_len(0)?;
            lock.rewind()?;
            writeln!(lock, "{}", std::process::id())
        };
        write_id().map_err(io_error(&path))?;
        Ok(Self { path, _lock: lock })
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The resolved configuration. A run exists from when this file does.
    pub fn config(&self) -> PathBuf {
        self.path.join(CONFIG)
    }

    /// The file of [`metrics`](crate::metrics).
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// The folder of token caches.
    pub fn data(&self) -> PathBuf {
        self.path.join(DATA)
    }

    /// The folder of [`Versions`](crate::atomic::Versions).
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// The folder of [`tensorboard`](crate::tensorboard).
    pub fn tensorboard(&self) -> PathBuf {
        self.path.join("tensorboard")
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> RunDirError {
    move |source| RunDirError::Io { path: path.to_owned(), source }
}

/// Refuses a folder with anything but a lock file and token caches in it.
fn refuse_contents(path: &Path) -> Result<(), RunDirError> {
    if path.join(CONFIG).exists() {
        return Err(RunDirError::HasRun { path: path.to_owned() });
    }
    for entry in fs::read_dir(path).map_err(io_error(path))? {
        let found = entry.map_err(io_error(path))?.file_name();
        if found != LOCK && found != DATA {
            return Err(RunDirError::NotEmpty { path: path.to_owned(), found: found.into() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
