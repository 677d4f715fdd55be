//! Checkpoint folders in Hugging Face form: `config.json` and `model.safetensors`, in one file or in shards.
//!
//! Reading trusts nothing: sizes are checked against the configuration before memory is taken, and a file that is
//! truncated, has other tensors or other shapes gives an error that names it.

mod files;
mod write;

pub use write::{write_weights, write_weights_as};

use crate::{
    config::ModelConfig,
    error::CheckpointError,
    families::{self, Family},
    weights::{Declared, Weights},
};
use files::Files;
use keyfold_core::DType;
use keyfold_tensor::Arena;
use std::{fs::File, io::Read, path::Path};

/// Name of the configuration in a checkpoint folder.
pub const CONFIG_FILE: &str = "config.json";
/// Name of the weights in a checkpoint folder.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// Name of the list of shards in a checkpoint folder.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// Configurations are kilobytes, indices of shards a few megabytes.
const MAX_CONFIG_BYTES: u64 = 64 << 20;

/// The configuration of the model in `dir`.
///
/// # Errors
/// When the file cannot be read, is no JSON, or describes no model.
pub fn read_config(dir: &Path) -> Result<ModelConfig, CheckpointError> {
    read_with_family(dir).map(|(config, _)| config)
}

/// As [`read_config`], and the family that the folder is written in.
///
/// # Errors
/// As [`read_config`].
pub fn read_with_family(dir: &Path) -> Result<(ModelConfig, &'static Family), CheckpointError> {
    let path = dir.join(CONFIG_FILE);
    let json = read_json(&path)?;
    families::read_with_family(&json)
        .and_then(|(config, family)| config.validate().map(|()| (config, family)))
        .map_err(|source| CheckpointError::Config { path, source })
}

fn read_json(path: &Path) -> Result<serde_json::Value, CheckpointError> {
    let file = File::open(path).map_err(CheckpointError::io(path))?;
    let mut text = String::new();
    file.take(MAX_CONFIG_BYTES).read_to_string(&mut text).map_err(CheckpointError::io(path))?;
    serde_json::from_str(&text).map_err(|source| CheckpointError::Json { path: path.to_owned(), source })
}

/// Writes the configuration of a model into `dir`; matrices are said to be stored as `dtype`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_config(dir: &Path, config: &ModelConfig, dtype: DType) -> Result<(), CheckpointError> {
    write_json(dir, &families::write(config, dtype))
}

/// Writes `config.json`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_json(dir: &Path, json: &serde_json::Value) -> Result<(), CheckpointError> {
    let path = dir.join(CONFIG_FILE);
    let mut text = serde_json::to_string_pretty(json)
        .map_err(|source| CheckpointError::Json { path: path.clone(), source })?;
    text.push('\n');
    std::fs::write(&path, text).map_err(CheckpointError::io(path))
}

/// The weights of the model in `dir` in memory of their own, matrices as `dtype`; with gradients when `train`.
///
/// # Errors
/// When a file cannot be read, is damaged, or holds other tensors than `config` declares.
pub fn read_weights(
    dir: &Path,
    config: &ModelConfig,
    dtype: DType,
    train: bool,
    arena: &Arena,
) -> Result<Weights, CheckpointError> {
    let (declared, files) = open(dir, config)?;
    let bytes = dtype.bytes() + if train { DType::F32.bytes() } else { 0 };
    let needed = declared.iter().map(Declared::len).sum::<usize>().saturating_mul(bytes) as u64;
    if let Some(available) = arena.device().available_memory().filter(|available| needed > *available) {
        return Err(CheckpointError::Memory { path: dir.to_owned(), needed, available });
    }
    let weights = Weights::allocate(arena, declared, dtype, train);
    for (declared, mut param) in weights.iter() {
        files.find(declared)?.read_into(&mut param.value);
    }
    weights.refresh();
    Ok(weights)
}

/// The weights of the model in `dir` for reading: matrices where the file has them, in the type it has them, vectors in
/// memory. Matrices of a type or alignment that cannot be used in place (f16) are copied.
///
/// # Errors
/// As [`read_weights`].
pub fn map_weights(dir: &Path, config: &ModelConfig, arena: &Arena) -> Result<Weights, CheckpointError> {
    let (declared, files) = open(dir, config)?;
    let weights = Weights::map(arena, declared, |weight| {
        Ok::<_, CheckpointError>(files.find(weight)?.tensor(weight, arena))
    })?;
    for (declared, mut param) in weights.iter().filter(|(declared, _)| !declared.is_matrix()) {
        files.find(declared)?.read_into(&mut param.value);
    }
    Ok(weights)
}

/// What `config` declares, and files that hold all of it and nothing else.
fn open(dir: &Path, config: &ModelConfig) -> Result<(Vec<Declared>, Files), CheckpointError> {
    let (_, family) = read_with_family(dir)?;
    let declared =
        config.declare().map_err(|source| CheckpointError::Config { path: dir.join(CONFIG_FILE), source })?;
    let files = Files::open(dir, family.names, config)?;
    files.check(&declared)?;
    Ok((declared, files))
}

#[cfg(test)]
mod tests;
