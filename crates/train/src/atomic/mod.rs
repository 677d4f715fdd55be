//! Files and folders that are never seen half written.
//!
//! [`write_atomic`] replaces one file. [`create_folder_atomic`] makes a folder appear with all its files.
//! [`Versions`] keeps a sequence of such folders and a pointer to the newest; checkpoints use it.
//!
//! Everything is first written under a temporary name in the same folder (`.<name>.tmp-<process>-<n>`), flushed to
//! the disk, and then renamed, which a file system does wholly or not at all. After an error the temporary is removed.
//! After a killed process it stays, is never read, and goes with the next [`remove_leftovers`].

mod versions;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

pub use versions::Versions;

/// What the names of temporaries contain.
const TEMPORARY_MARK: &str = ".tmp-";

/// A file or folder could not be written; what was there before is untouched.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct AtomicError {
    /// What was tried, as a verb: `write`, `rename`.
    pub action: &'static str,
    /// The file or folder that was asked for.
    pub path: PathBuf,
    /// Why the system refused.
    pub source: io::Error,
}

/// Replaces the file at `path` by what `write` writes; readers find the old or the new contents, whole.
///
/// A symbolic link at `path` is replaced, not followed.
///
/// # Errors
/// When `write` fails or the system does, such as on a full disk. The old file is then as it was.
pub fn write_atomic<T>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<T>,
) -> Result<T, AtomicError> {
    let temporary = Temporary::beside(path)?;
    let file =
        attempt("create", path, || OpenOptions::new().write(true).create_new(true).open(&temporary.path))?;
    let value = write_through(path, file, write)?;
    temporary.rename_to(path)?;
    Ok(value)
}

/// Fills `file`, which will become `path`, and waits until the disk has it.
fn write_through<T>(
    path: &Path,
    file: File,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<T>,
) -> Result<T, AtomicError> {
    let mut writer = BufWriter::with_capacity(1 << 18, file);
    let value = attempt("write", path, || write(&mut writer))?;
    attempt("write", path, || writer.flush())?;
    attempt("flush", path, || writer.get_ref().sync_all())?;
    Ok(value)
}

/// Makes the folder `path` with the files that `write` puts into the empty folder it is given.
///
/// # Errors
/// When `path` exists already, when `write` fails, or when the system does. Nothing is left behind.
pub fn create_folder_atomic<T, E: From<AtomicError>>(
    path: &Path,
    write: impl FnOnce(&Path) -> Result<T, E>,
) -> Result<T, E> {
    // Told before the work, not by the rename after it.
    attempt(
        "create",
        path,
        || if path.exists() { Err(io::ErrorKind::AlreadyExists.into()) } else { Ok(()) },
    )?;
    let temporary = Temporary::beside(path)?;
    attempt("create", path, || fs::create_dir(&temporary.path))?;
    let value = write(&temporary.path)?;
    attempt("flush", path, || sync_tree(&temporary.path))?;
    temporary.rename_to(path)?;
    Ok(value)
}

/// Removes what killed processes left half written in `folder`, and returns how many there were.
///
/// To be called only while no other process writes there: see [`RunDir`](crate::run_dir::RunDir).
///
/// # Errors
/// When the folder cannot be listed or an entry not be removed.
pub fn remove_leftovers(folder: &Path) -> Result<usize, AtomicError> {
    let mut removed = 0;
    for entry in attempt("list", folder, || fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>())? {
        let name = entry.file_name();
        let is_temporary = name.to_str().is_some_and(|name| {
            name.starts_with('.') && name.rsplit_once(TEMPORARY_MARK).is_some_and(|(_, tail)| is_serial(tail))
        });
        if is_temporary {
            attempt("remove", &entry.path(), || remove(&entry.path()))?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Whether `tail` is the `<process>-<n>` of a temporary.
fn is_serial(tail: &str) -> bool {
    tail.split_once('-')
        .is_some_and(|(process, n)| process.parse::<u32>().is_ok() && n.parse::<u64>().is_ok())
}

/// A name beside the final one; what it names is removed on drop unless it was renamed.
struct Temporary {
    path: PathBuf,
    renamed: bool,
}

impl Temporary {
    fn beside(path: &Path) -> Result<Self, AtomicError> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let name = attempt("write", path, || {
            path.file_name()
                .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name"))
        })?;
        let mut temporary = std::ffi::OsString::from(".");
        temporary.push(name);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        temporary.push(format!("{TEMPORARY_MARK}{}-{serial}", std::process::id()));
        Ok(Self { path: path.with_file_name(temporary), renamed: false })
    }

    /// Moves the temporary to `path` and waits until the disk has the new name.
    fn rename_to(mut self, path: &Path) -> Result<(), AtomicError> {
        attempt("rename", path, || fs::rename(&self.path, path))?;
        self.renamed = true;
        attempt("flush", path, || sync_folder(folder_of(path)))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            // The error that led here is the one to tell; the next start removes what is left.
            let _ = remove(&self.path);
        }
    }
}

/// The folder that holds `path`.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// Waits until the disk has every file and folder below `folder`.
fn sync_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            // Windows flushes only what is open for writing.
            OpenOptions::new().read(true).write(cfg!(windows)).open(entry.path())?.sync_all()?;
        }
    }
    sync_folder(folder)
}

/// Waits until the disk has the names in `folder`; Windows has no such call and keeps them by itself.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(windows) { Ok(()) } else { File::open(folder)?.sync_all() }
}

/// Does one step of a protocol. All steps pass here, so that tests can kill the process before any one of them.
fn attempt<T>(
    action: &'static str,
    path: &Path,
    run: impl FnOnce() -> io::Result<T>,
) -> Result<T, AtomicError> {
    #[cfg(test)]
    tests::maybe_die();
    run().map_err(|source| AtomicError { action, path: path.to_owned(), source })
}

#[cfg(test)]
mod tests;
