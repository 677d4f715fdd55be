//! What the targets share: a scratch folder, and inputs that change a valid file.

use keyfold_train::config::RunConfig;
use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// A folder that lives as long as the process.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| tempfile::tempdir().expect("a temporary folder").keep())
}

/// Writes `bytes` to the file `name` of [`folder`] and gives its path.
pub fn write(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    std::fs::write(&path, bytes).expect("a writable temporary folder");
    path
}

/// A file from fuzzer input: the bytes themselves, or `valid` with some bytes changed and perhaps cut. Checked lengths
/// and hashes are hardly ever hit by chance; a changed valid file passes most of them.
pub fn file(valid: &[u8], input: &[u8]) -> Vec<u8> {
    let Some((mode, rest)) = input.split_first() else { return Vec::new() };
    if mode % 2 == 0 {
        return rest.to_vec();
    }
    let mut bytes = valid.to_vec();
    for change in rest.chunks_exact(4) {
        let place = u32::from_le_bytes([change[0], change[1], change[2], 0]) as usize % bytes.len().max(1);
        if let Some(byte) = bytes.get_mut(place) {
            *byte ^= change[3];
        }
    }
    if mode % 4 == 3 {
        bytes.truncate(rest.len() * valid.len() / 256);
    }
    bytes
}

/// Runs `work` without the hook that ends the process at any panic, for libraries whose panics the code under test catches; one
/// that comes out of `work` still ends the process.
pub fn catching<T>(work: impl FnOnce() -> T) -> T {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = work();
    std::panic::set_hook(hook);
    result
}

/// A run of a tiny model on a text in [`folder`].
pub fn run_config() -> RunConfig {
    let text = write(
        "text.txt",
        "the old cat sat on the mat\n<|endoftext|>\nand slept\n<|endoftext|>\n".repeat(20).as_bytes(),
    );
    let toml = format!(
        "[model]\nhidden_size = 8\nnum_hidden_layers = 1\nintermediate_size = 8\nmax_position_embeddings = 8\n\
         [model.attention]\nkind = \"mfa\"\nheads = 2\nhead_dim = 4\n\
         [data]\nsource = {text:?}\nseq_len = 8\n[train]\nsteps = 2\nbatch_size = 1\n"
    );
    RunConfig::parse(&toml, Path::new("fuzz.toml"), &[]).expect("a valid configuration")
}
