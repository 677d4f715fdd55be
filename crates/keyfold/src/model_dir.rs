//! Finding and opening a model: a checkpoint folder, or a run's folder with checkpoints in it.

use anyhow::Context;
use keyfold_core::DType;
use keyfold_data::Tokenizer;
use keyfold_model::{ModelConfig, checkpoint, weights::Weights};
use keyfold_tensor::Arena;
use keyfold_train::atomic::Versions;
use std::path::{Path, PathBuf};

/// The folder that holds the model itself: `path`, or the newest checkpoint of the run in `path`.
pub(crate) fn resolve(path: &Path) -> anyhow::Result<PathBuf> {
    if path.join(checkpoint::CONFIG_FILE).exists() {
        return Ok(path.to_owned());
    }
    let checkpoints = path.join("checkpoints");
    if checkpoints.is_dir() {
        let newest = Versions::latest(&checkpoints)?;
        return newest.with_context(|| format!("{}: no checkpoint has been written yet", path.display()));
    }
    anyhow::bail!(
        "{}: expected a model folder with {} or a run with checkpoints/",
        path.display(),
        checkpoint::CONFIG_FILE
    )
}

/// Configuration and weights of the model in `path`, matrices in memory as `dtype`.
pub(crate) fn open(path: &Path, dtype: DType) -> anyhow::Result<(ModelConfig, Weights)> {
    let dir = resolve(path)?;
    let config = checkpoint::read_config(&dir)?;
    let weights = checkpoint::read_weights(&dir, &config, dtype, false, &Arena::new())?;
    Ok((config, weights))
}

/// The tokenizer of the model in `path`; its vocabulary fits the model's.
pub(crate) fn tokenizer(path: &Path, config: &ModelConfig) -> anyhow::Result<Tokenizer> {
    let file = resolve(path)?.join("tokenizer.json");
    let tokenizer = Tokenizer::load(&file)?;
    anyhow::ensure!(
        tokenizer.vocab_size() <= config.vocab_size,
        "{}: {} tokens for a model of {}",
        file.display(),
        tokenizer.vocab_size(),
        config.vocab_size
    );
    Ok(tokenizer)
}
