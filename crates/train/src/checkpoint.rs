//! What a run needs to go on as if it had never stopped.
//!
//! A checkpoint is a model folder that any reader of checkpoints can open, plus two files of the run:
//! `training.json` (counters, place in the data) and `training.safetensors` (optimizer moments, and the f32 weights
//! when the model's own file rounds them), and the checksums of all of them.

use crate::{
    checksums::{self, ChecksumError},
    config::{OptimizerConfig, RunConfig},
    trainer::Trainer,
};
use keyfold_core::DType;
use keyfold_data::{DataError, Dataset, SamplerState};
use keyfold_model::{CheckpointError, LanguageModel, ModelError, checkpoint};
use keyfold_tensor::{Arena, Tensor};
use safetensors::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};
use std::{
    borrow::Cow,
    path::{Path, PathBuf},
};

const STATE_FILE: &str = "training.json";
const MOMENTS_FILE: &str = "training.safetensors";
const VERSION: u32 = 1;
/// The f32 matrices, in [`MOMENTS_FILE`] when the model's own file rounds them.
const EXACT_MATRICES: &str = "matrices.value";

/// Counters of a run.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    version: u32,
    step: u64,
    tokens: u64,
    elapsed_s: f64,
    /// Kind of the optimizer that the moments are of.
    optimizer: String,
    data: SamplerState,
}

/// A checkpoint that cannot be written or continued from.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// The model's files are wrong.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The place in the data is that of other data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A file is not as it was written.
    #[error(transparent)]
    Checksum(#[from] ChecksumError),
    /// One of the run's own files is wrong.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was expected and what came.
        problem: String,
    },
}

impl From<CheckpointError> for ResumeError {
    fn from(error: CheckpointError) -> Self {
        Self::Model(error.into())
    }
}

fn file_error(path: &Path) -> impl Fn(String) -> ResumeError {
    let path = path.to_owned();
    move |problem| ResumeError::File { path: path.clone(), problem }
}

impl Trainer {
    /// Writes a model folder: configuration, weights, tokenizer.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_model(&self, dir: &Path) -> Result<(), ResumeError> {
        let dtype = self.config.train.checkpoint_dtype;
        checkpoint::write_config(dir, &self.config.model, dtype)?;
        checkpoint::write_weights(dir, &self.config.model, self.model.weights(), dtype)?;
        Ok(self.data.tokenizer().save(dir)?)
    }

    /// Writes a checkpoint after `elapsed_s` seconds of training.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_checkpoint(&self, dir: &Path, elapsed_s: f64) -> Result<(), ResumeError> {
        self.write_model(dir)?;
        let path = dir.join(STATE_FILE);
        let state = State {
            version: VERSION,
            step: self.step,
            tokens: self.tokens,
            elapsed_s,
            optimizer: self.config.train.optimizer.kind().to_owned(),
            data: self.data_state(),
        };
        let error = file_error(&path);
        let text = serde_json::to_string_pretty(&state).map_err(|e| error(e.to_string()))?;
        std::fs::write(&path, text).map_err(|e| error(e.to_string()))?;
        let path = dir.join(MOMENTS_FILE);
        let tensors = self
            .state_tensors()
            .into_iter()
            .map(|(name, tensor)| (name, Flat { shape: [tensor.len()], tensor }));
        safetensors::serialize_to_file(tensors, None, &path).map_err(|e| file_error(&path)(e.to_string()))?;
        Ok(checksums::write(dir)?)
    }

    /// The run that `dir` holds, with the seconds it has trained.
    ///
    /// # Errors
    /// When a file is missing, damaged, or of another model or other data.
    pub fn resume(
        config: RunConfig,
        data: Dataset,
        dir: &Path,
        arena: &Arena,
    ) -> Result<(Self, f64), ResumeError> {
        checksums::verify(dir)?;
        let stored = checkpoint::read_config(dir)?;
        let path = dir.join(checkpoint::CONFIG_FILE);
        // Initialisation is not part of every family's configuration, and no longer matters.
        let expected = keyfold_model::ModelConfig { init: stored.init, ..config.model.clone() };
        if stored != expected {
            let problem =
                "the checkpoint is of another model than the run's configuration describes".to_owned();
            return Err(ResumeError::File { path, problem });
        }
        let weights = checkpoint::read_weights(dir, &config.model, DType::F32, true, arena)?;
        let model = LanguageModel::with_weights(&config.model, weights, arena)?;
        let mut trainer = Self::with_model(config, model, data);

        let path = dir.join(STATE_FILE);
        let error = file_error(&path);
        let text = std::fs::read_to_string(&path).map_err(|e| error(e.to_string()))?;
        let state: State = serde_json::from_str(&text).map_err(|e| error(e.to_string()))?;
        if state.version != VERSION {
            return Err(error(format!("`version` is {}: expected {VERSION}", state.version)));
        }
        let optimizer = trainer.config.train.optimizer.kind();
        if state.optimizer != optimizer {
            return Err(error(format!(
                "`optimizer` is `{}`: the run's configuration has `{optimizer}`",
                state.optimizer
            )));
        }
        trainer.step = state.step;
        trainer.tokens = state.tokens;
        trainer.data.restore(&state.data)?;
        trainer.read_moments(&dir.join(MOMENTS_FILE))?;
        Ok((trainer, state.elapsed_s))
    }

    fn read_moments(&mut self, path: &Path) -> Result<(), ResumeError> {
        let error = file_error(path);
        let bytes = std::fs::read(path).map_err(|e| error(e.to_string()))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| error(e.to_string()))?;
        let mut expected = self.moments();
        // Written as the configuration of that time said, which may have been another.
        if file.tensor(EXACT_MATRICES).is_ok() {
            expected.push((EXACT_MATRICES, self.model.weights().matrices.value.clone()));
        }
        for (name, mut tensor) in expected {
            let view = file.tensor(name).map_err(|_| error(format!("tensor `{name}` is missing")))?;
            if view.dtype() != Dtype::F32 || view.shape() != [tensor.len()] {
                let (found, dtype) = (view.shape(), view.dtype());
                return Err(error(format!(
                    "tensor `{name}` is {found:?} of {dtype:?}: expected [{}] of F32",
                    tensor.len()
                )));
            }
            let values: Vec<f32> =
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            tensor.write(&values);
        }
        self.model.weights().refresh();
        Ok(())
    }

    fn moments(&self) -> Vec<(&'static str, Tensor)> {
        self.optimizer.state().map(|(name, tensor)| (name, tensor.clone())).into()
    }

    /// What the model's own file does not hold exactly.
    fn state_tensors(&self) -> Vec<(&'static str, Tensor)> {
        let mut tensors = self.moments();
        if self.config.train.checkpoint_dtype != DType::F32 {
            tensors.push((EXACT_MATRICES, self.model.weights().matrices.value.clone()));
        }
        tensors
    }
}

impl OptimizerConfig {
    fn kind(&self) -> &'static str {
        match self {
            Self::Adamw { .. } => "adamw",
            Self::Muon { .. } => "muon",
        }
    }
}

/// A flat f32 tensor as the file stores it.
struct Flat {
    tensor: Tensor,
    shape: [usize; 1],
}

impl View for Flat {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.tensor.to_vec().iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        4 * self.tensor.len()
    }
}
