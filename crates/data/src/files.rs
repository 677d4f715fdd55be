//! Small file helpers: atomic writes, read-only maps, digests.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use memmap2::Mmap;
use sha2::{Digest, Sha256};

use crate::{DataError, Result};

/// Writes `path` so that a reader sees either the old file or the whole new one.
pub(crate) fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<tempfile::NamedTempFile>) -> std::io::Result<()>,
) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(DataError::io(folder, "create"))?;
    let file = tempfile::Builder::new()
        .prefix(".keyfold-")
        .suffix(".part")
        .tempfile_in(folder)
        .map_err(DataError::io(folder, "write into"))?;
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    write(&mut writer).map_err(DataError::io(path, "write"))?;
    let file = writer.into_inner().map_err(|e| e.into_error()).map_err(DataError::io(path, "write"))?;
    #[cfg(unix)]
    {
        // Temporary files are private to their owner; a cache or a tokenizer should be as readable as
        // any other file that a program writes.
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::Permissions::from_mode(0o644);
        file.as_file().set_permissions(mode).map_err(DataError::io(path, "write"))?;
    }
    file.as_file().sync_data().map_err(DataError::io(path, "write"))?;
    file.persist(path).map_err(|e| e.error).map_err(DataError::io(path, "write"))?;
    Ok(())
}

/// Writes a small text file atomically.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<()> {
    write_atomically(path, |w| w.write_all(text.as_bytes()))
}

/// Maps a file read-only. An empty file gives an empty map.
pub(crate) fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(DataError::io(path, "open"))?;
    // SAFETY: the map is read-only and private to this process's reads. As with every mapped file,
    // another process that truncates it while it is in use ends this one with SIGBUS; the crate's own
    // files are replaced by rename and never shortened in place.
    unsafe { Mmap::map(&file) }.map_err(DataError::io(path, "map"))
}

/// SHA-256 of a file's content, read in blocks.
pub(crate) fn sha256_file(path: &Path) -> Result<[u8; 32]> {
    let mut file = File::open(path).map_err(DataError::io(path, "open"))?;
    let mut hash = Sha256::new();
    let mut block = vec![0u8; 1 << 20];
    loop {
        let n = file.read(&mut block).map_err(DataError::io(path, "read"))?;
        if n == 0 {
            return Ok(hash.finalize().into());
        }
        hash.update(&block[..n]);
    }
}

/// SHA-256 of several parts, each preceded by its length, so that no two lists of parts collide.
pub(crate) fn sha256_parts(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
