//! Finding and opening a model: a checkpoint folder in Hugging Face form, or a run's folder with checkpoints in it.

pub(crate) mod generation;

use generation::Defaults;

use anyhow::Context;
use keyfold_core::DType;
use keyfold_data::{ChatTemplate, Tokenizer};
use keyfold_model::{ModelConfig, checkpoint, families::Family, weights::Weights};
use keyfold_tensor::{Arena, Device};
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

/// An opened model folder.
pub(crate) struct ModelDir {
    /// The folder that holds the model itself.
    pub(crate) path: PathBuf,
    pub(crate) config: ModelConfig,
    /// The form that the folder is in.
    pub(crate) family: &'static Family,
    pub(crate) weights: Weights,
}

impl ModelDir {
    /// Opens the model in `path`; matrices are used as they lie in the file unless `dtype` asks for a copy.
    pub(crate) fn open(path: &Path, dtype: Option<DType>) -> anyhow::Result<Self> {
        Self::open_on(path, dtype, Device::Cpu)
    }

    /// As [`ModelDir::open`], with the weights in the memory of `device`.
    pub(crate) fn open_on(path: &Path, dtype: Option<DType>, device: Device) -> anyhow::Result<Self> {
        let path = resolve(path)?;
        let (config, family) = checkpoint::read_with_family(&path)?;
        let arena = Arena::on(device)?;
        let weights = match (device, dtype) {
            (Device::Cpu, None) => checkpoint::map_weights(&path, &config, &arena)?,
            (Device::Cpu, Some(dtype)) => checkpoint::read_weights(&path, &config, dtype, false, &arena)?,
            (Device::Cuda(_), None | Some(DType::Bf16)) => {
                checkpoint::read_weights(&path, &config, DType::Bf16, false, &arena)?
            }
            (Device::Cuda(_), Some(dtype)) => anyhow::bail!("--dtype {dtype}: expected bf16 on {device}"),
        };
        Ok(Self { path, config, family, weights })
    }

    /// How matrices are held in memory: that of most of their elements.
    pub(crate) fn dtype(&self) -> DType {
        let matrices = self.weights.iter().filter(|(declared, _)| declared.is_matrix());
        let (mut all, mut halves) = (0, 0);
        for (declared, param) in matrices {
            all += declared.len();
            halves += if param.value.dtype() == DType::Bf16 { declared.len() } else { 0 };
        }
        if 2 * halves > all { DType::Bf16 } else { DType::F32 }
    }

    /// The tokenizer, whose text fits the model's vocabulary.
    pub(crate) fn tokenizer(&self) -> anyhow::Result<Tokenizer> {
        let file = self.path.join("tokenizer.json");
        let tokenizer = Tokenizer::load(&file)?;
        // Some published tokenizers have special tokens that the text model has no row for.
        let mut beyond = self.config.vocab_size as u32..tokenizer.vocab_size() as u32;
        anyhow::ensure!(
            beyond.all(|id| tokenizer.token_bytes(id).is_none_or(<[u8]>::is_empty)),
            "{}: {} tokens for a model of {}",
            file.display(),
            tokenizer.vocab_size(),
            self.config.vocab_size
        );
        Ok(tokenizer)
    }

    /// Fails unless the model has a row for every id.
    pub(crate) fn check_ids(&self, ids: &[u32]) -> anyhow::Result<()> {
        match ids.iter().find(|id| **id as usize >= self.config.vocab_size) {
            None => Ok(()),
            Some(id) => anyhow::bail!(
                "{}: the text has the token {id}: expected ids below the model's vocab_size = {}",
                self.path.display(),
                self.config.vocab_size
            ),
        }
    }

    /// What the folder says about generating.
    pub(crate) fn defaults(&self, tokenizer: &Tokenizer) -> anyhow::Result<Defaults> {
        Defaults::read(&self.path, tokenizer)
    }

    /// The chat template in `file`, or the folder's own.
    pub(crate) fn chat_template(&self, file: Option<&Path>) -> anyhow::Result<ChatTemplate> {
        Ok(match file {
            Some(file) => ChatTemplate::from_file(file, &self.path)?,
            None => ChatTemplate::load(&self.path)?,
        })
    }
}
