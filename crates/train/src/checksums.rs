//! Checksums of a checkpoint's files, so that a bit that flipped on the disk is noticed before training goes on from it.

use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Name of the list in a checkpoint folder.
pub const CHECKSUMS_FILE: &str = "checksums.json";

/// Length and CRC-32C (RFC 3720, appendix B.4) of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sum {
    bytes: u64,
    crc32c: u32,
}

/// A checkpoint whose files are not those that were written.
#[derive(Debug, thiserror::Error)]
pub enum ChecksumError {
    /// Reading or writing failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The list itself does not parse.
    #[error("{}: {source}", path.display())]
    List {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// A file differs from what was written.
    #[error("{}: damaged: {found}, but {expected} were written", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Length and checksum that were written.
        expected: String,
        /// Length and checksum now.
        found: String,
    },
}

impl ChecksumError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// Writes the checksums of all files in `dir`.
///
/// # Errors
/// When a file cannot be read or the list not written.
pub fn write(dir: &Path) -> Result<(), ChecksumError> {
    let mut sums = BTreeMap::new();
    for entry in std::fs::read_dir(dir).map_err(ChecksumError::io(dir))? {
        let path = entry.map_err(ChecksumError::io(dir))?.path();
        if path.is_file()
            && let Some(name) = path.file_name().and_then(|name| name.to_str())
            && name != CHECKSUMS_FILE
        {
            sums.insert(name.to_owned(), sum(&path)?);
        }
    }
    let path = dir.join(CHECKSUMS_FILE);
    let text = serde_json::to_string_pretty(&sums)
        .map_err(|source| ChecksumError::List { path: path.clone(), source })?;
    std::fs::write(&path, text).map_err(ChecksumError::io(&path))
}

/// Fails unless the listed files of `dir` are as they were written. A folder without a list passes.
///
/// # Errors
/// Names the file that differs.
pub fn verify(dir: &Path) -> Result<(), ChecksumError> {
    let list = dir.join(CHECKSUMS_FILE);
    if !list.exists() {
        return Ok(());
    }
    let text = std::fs::read_to_string(&list).map_err(ChecksumError::io(&list))?;
    let sums: BTreeMap<String, Sum> =
        serde_json::from_str(&text).map_err(|source| ChecksumError::List { path: list.clone(), source })?;
    for (name, expected) in sums {
        // Only names of files in the folder itself are ever written.
        let path = dir.join(Path::new(&name).file_name().unwrap_or_default());
        let found = sum(&path)?;
        if found != expected {
            let text = |sum: Sum| format!("{} bytes with CRC-32C {:08x}", sum.bytes, sum.crc32c);
            return Err(ChecksumError::Damaged { path, expected: text(expected), found: text(found) });
        }
    }
    Ok(())
}

fn sum(path: &Path) -> Result<Sum, ChecksumError> {
    let mut file = File::open(path).map_err(ChecksumError::io(path))?;
    let mut buffer = vec![0; 1 << 20];
    let mut sum = Sum { bytes: 0, crc32c: 0 };
    loop {
        match file.read(&mut buffer).map_err(ChecksumError::io(path))? {
            0 => return Ok(sum),
            read => {
                sum.bytes += read as u64;
                sum.crc32c = crc32c::crc32c_append(sum.crc32c, &buffer[..read]);
            }
        }
    }
}
