//! The configuration of a run: TOML, overrides by dotted path, a typed tree.

use keyfold_core::DType;
use keyfold_data::SourceSpec;
use keyfold_model::{ConfigError, ModelConfig};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

use crate::schedule::Schedule;

/// A whole run: `[model]`, `[data]`, `[train]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// The model.
    pub model: ModelConfig,
    /// What it is trained on.
    pub data: DataConfig,
    /// How.
    pub train: TrainConfig,
}

/// `[data]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// `synthetic:stories`, or a text file or folder.
    pub source: String,
    /// A text file or folder to validate on; a split of `source` without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<PathBuf>,
    /// `bytes`, `bpe:SIZE`, or a `tokenizer.json`.
    #[serde(default = "defaults::tokenizer")]
    pub tokenizer: String,
    /// Tokens of one training sequence.
    #[serde(default = "defaults::seq_len")]
    pub seq_len: usize,
    /// Whether tokens see only their own document where several share a sequence.
    #[serde(default)]
    pub mask_documents: bool,
}

/// `[train]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Seed of weights and of the order of the data.
    #[serde(default)]
    pub seed: u64,
    /// Updates to make.
    pub steps: u64,
    /// Sequences that go through the model at a time.
    #[serde(default = "defaults::batch_size")]
    pub batch_size: usize,
    /// Batches whose gradients are added up for one update.
    #[serde(default = "defaults::one")]
    pub accumulate: usize,
    /// Peak learning rate.
    #[serde(default = "defaults::lr")]
    pub lr: f64,
    /// How it goes over the run.
    #[serde(default = "defaults::schedule")]
    pub schedule: Schedule,
    /// The optimizer.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// Largest norm of the whole gradient; longer ones are scaled down to it.
    #[serde(default = "defaults::clip_norm")]
    pub clip_norm: f64,
    /// Storage of the values kept for the backward pass.
    #[serde(default = "defaults::f32")]
    pub activation_dtype: DType,
    /// Keep only each layer's input and run the layer again in the backward pass.
    #[serde(default)]
    pub activation_checkpointing: bool,
    /// Storage of the matrices in checkpoints' `model.safetensors`.
    #[serde(default = "defaults::f32")]
    pub checkpoint_dtype: DType,
    /// Updates from one log line to the next.
    #[serde(default = "defaults::log_every")]
    pub log_every: u64,
    /// Updates from one validation to the next; 0: at the end alone.
    #[serde(default = "defaults::eval_every")]
    pub eval_every: u64,
    /// Tokens of a validation; 0: all there are.
    #[serde(default = "defaults::eval_tokens")]
    pub eval_tokens: u64,
    /// Updates from one checkpoint to the next; 0: at the end alone.
    #[serde(default = "defaults::save_every")]
    pub save_every: u64,
    /// Checkpoints to keep.
    #[serde(default = "defaults::keep")]
    pub keep_checkpoints: usize,
}

/// `[train.optimizer]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum OptimizerConfig {
    /// AdamW (arXiv 1711.05101); decay applies to matrices alone.
    Adamw {
        /// Decay of the first and second moments.
        #[serde(default = "defaults::betas")]
        betas: [f64; 2],
        /// Added to the root of the second moment.
        #[serde(default = "defaults::eps")]
        eps: f64,
        /// Decoupled weight decay, times the learning rate.
        #[serde(default = "defaults::weight_decay")]
        weight_decay: f64,
    },
    /// Muon for the layers' matrices (momentum orthogonalised by Newton-Schulz steps), AdamW for the rest.
    Muon {
        /// Momentum.
        #[serde(default = "defaults::momentum")]
        momentum: f64,
        /// Learning rate of Muon's matrices as a multiple of `train.lr`.
        #[serde(default = "defaults::muon_lr")]
        lr_ratio: f64,
        /// AdamW's moment decays.
        #[serde(default = "defaults::betas")]
        betas: [f64; 2],
        /// AdamW's epsilon.
        #[serde(default = "defaults::eps")]
        eps: f64,
        /// Decoupled weight decay of all matrices.
        #[serde(default = "defaults::weight_decay")]
        weight_decay: f64,
    },
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self::Adamw { betas: defaults::betas(), eps: defaults::eps(), weight_decay: defaults::weight_decay() }
    }
}

mod defaults {
    use super::{DType, Schedule};

    pub(super) fn tokenizer() -> String {
        "bytes".into()
    }
    pub(super) fn seq_len() -> usize {
        256
    }
    pub(super) fn batch_size() -> usize {
        8
    }
    pub(super) fn one() -> usize {
        1
    }
    pub(super) fn lr() -> f64 {
        1e-3
    }
    pub(super) fn schedule() -> Schedule {
        Schedule::Cosine { warmup: 50, final_ratio: 0.1 }
    }
    pub(super) fn clip_norm() -> f64 {
        1.0
    }
    pub(super) fn f32() -> DType {
        DType::F32
    }
    pub(super) fn log_every() -> u64 {
        10
    }
    pub(super) fn eval_every() -> u64 {
        200
    }
    pub(super) fn eval_tokens() -> u64 {
        65_536
    }
    pub(super) fn save_every() -> u64 {
        500
    }
    pub(super) fn keep() -> usize {
        2
    }
    pub(super) fn betas() -> [f64; 2] {
        [0.9, 0.95]
    }
    pub(super) fn eps() -> f64 {
        1e-8
    }
    pub(super) fn weight_decay() -> f64 {
        0.1
    }
    pub(super) fn momentum() -> f64 {
        0.95
    }
    pub(super) fn muon_lr() -> f64 {
        10.0
    }
}

impl TrainConfig {
    /// The defaults, for `steps` updates.
    pub fn of_steps(steps: u64) -> Self {
        Self {
            seed: 0,
            steps,
            batch_size: defaults::batch_size(),
            accumulate: defaults::one(),
            lr: defaults::lr(),
            schedule: defaults::schedule(),
            optimizer: OptimizerConfig::default(),
            clip_norm: defaults::clip_norm(),
            activation_dtype: DType::F32,
            activation_checkpointing: false,
            checkpoint_dtype: DType::F32,
            log_every: defaults::log_every(),
            eval_every: defaults::eval_every(),
            eval_tokens: defaults::eval_tokens(),
            save_every: defaults::save_every(),
            keep_checkpoints: defaults::keep(),
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is no TOML, has unknown keys, or values of the wrong type.
    #[error("{}: {source}", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// The cause, with the place.
        source: toml::de::Error,
    },
    /// An override is not of the form `a.b=value`, or its path crosses a value.
    #[error("--set {given}: {problem}")]
    Override {
        /// What was given.
        given: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The configuration cannot be written as TOML.
    #[error("the configuration cannot be written: {0}")]
    Write(#[from] toml::ser::Error),
    /// A value outside its range.
    #[error(transparent)]
    Value(#[from] ConfigError),
}

impl RunConfig {
    /// Reads `path`, then applies each of `overrides` (`a.b=value`, the value in TOML; bare words are text).
    ///
    /// # Errors
    /// Names the file and place, or the key, what was expected and what came.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, RunConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| RunConfigError::Io { path: path.to_owned(), source })?;
        Self::parse(&text, path, overrides)
    }

    /// As [`RunConfig::load`], from `text`; errors name `path`.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn parse(text: &str, path: &Path, overrides: &[String]) -> Result<Self, RunConfigError> {
        let toml = |source| RunConfigError::Toml { path: path.to_owned(), source };
        let mut tree: toml::Table = toml::from_str(text).map_err(toml)?;
        for given in overrides {
            set(&mut tree, given)?;
        }
        // Without overrides the text itself is parsed, so that errors show the line.
        let config: Self =
            if overrides.is_empty() { toml::from_str(text) } else { tree.try_into() }.map_err(toml)?;
        config.validate()?;
        Ok(config)
    }

    /// The configuration as TOML.
    ///
    /// # Errors
    /// When a number has no TOML form.
    pub fn to_toml(&self) -> Result<String, RunConfigError> {
        Ok(toml::to_string_pretty(self)?)
    }

    /// Checks ranges of `[data]` and `[train]`; the model is checked once its vocabulary is known.
    ///
    /// # Errors
    /// Names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let train = &self.train;
        let at_least_one = [
            ("train.steps", train.steps),
            ("train.batch_size", train.batch_size as u64),
            ("train.accumulate", train.accumulate as u64),
            ("train.log_every", train.log_every),
            ("train.keep_checkpoints", train.keep_checkpoints as u64),
            ("data.seq_len", self.data.seq_len as u64),
        ];
        if let Some((key, value)) = at_least_one.into_iter().find(|(_, value)| *value == 0) {
            return Err(ConfigError::value(key, "at least 1", value));
        }
        let tokens = train.batch_size.checked_mul(self.data.seq_len);
        if tokens.is_none_or(|tokens| tokens > MAX_BATCH_TOKENS) {
            let expected =
                format!("at most {MAX_BATCH_TOKENS} tokens in a batch (batch_size * data.seq_len)");
            return Err(ConfigError::value("train.batch_size", expected, train.batch_size));
        }
        // All batches of an update are in memory at once.
        let tokens = tokens.and_then(|tokens| tokens.checked_mul(train.accumulate));
        if tokens.is_none_or(|tokens| tokens > MAX_BATCH_TOKENS) {
            let expected = format!(
                "at most {MAX_BATCH_TOKENS} tokens in an update (accumulate * batch_size * data.seq_len)"
            );
            return Err(ConfigError::value("train.accumulate", expected, train.accumulate));
        }
        let endless = self.data.source.parse().is_ok_and(|source: SourceSpec| source.stories().is_some());
        if train.eval_tokens == 0 && endless {
            return Err(ConfigError::value("train.eval_tokens", "at least 1: stories have no end", 0));
        }
        if self.data.seq_len > self.model.max_position_embeddings {
            let expected =
                format!("at most model.max_position_embeddings = {}", self.model.max_position_embeddings);
            return Err(ConfigError::value("data.seq_len", expected, self.data.seq_len));
        }
        let positive = [("train.lr", train.lr), ("train.clip_norm", train.clip_norm)];
        if let Some((key, value)) = positive.into_iter().find(|(_, v)| !(v.is_finite() && *v > 0.0)) {
            return Err(ConfigError::value(key, "a finite number above 0", value));
        }
        train.optimizer.validate()?;
        let schedule = |error: crate::schedule::ScheduleError| {
            ConfigError::value(format!("train.schedule.{}", error.field), "from 0 to 1", error.value)
        };
        train.schedule.validate().map_err(schedule)
    }
}

const MAX_BATCH_TOKENS: usize = 1 << 26;

impl OptimizerConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let (betas, eps, decay) = match *self {
            Self::Adamw { betas, eps, weight_decay } => (betas, eps, weight_decay),
            Self::Muon { momentum, lr_ratio, betas, eps, weight_decay } => {
                fraction("momentum", momentum)?;
                non_negative("lr_ratio", lr_ratio)?;
                (betas, eps, weight_decay)
            }
        };
        fraction("betas", betas[0])?;
        fraction("betas", betas[1])?;
        non_negative("eps", eps)?;
        non_negative("weight_decay", decay)
    }
}

fn fraction(key: &str, value: f64) -> Result<(), ConfigError> {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::value(format!("train.optimizer.{key}"), "at least 0 and below 1", value))
}

fn non_negative(key: &str, value: f64) -> Result<(), ConfigError> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(ConfigError::value(format!("train.optimizer.{key}"), "a finite number of at least 0", value))
}

/// Applies one `a.b=value`.
fn set(tree: &mut toml::Table, given: &str) -> Result<(), RunConfigError> {
    let wrong = |problem: String| RunConfigError::Override { given: given.to_owned(), problem };
    let (path, text) = given
        .split_once('=')
        .ok_or_else(|| wrong("expected key=value, such as train.lr=0.001".to_owned()))?;
    // A text of several lines may be TOML with further keys: then it is no value.
    let parsed =
        toml::from_str::<toml::Table>(&format!("value = {text}")).ok().filter(|table| table.len() == 1);
    let value = match parsed.and_then(|mut table| table.remove("value")) {
        Some(value) => value,
        None => toml::Value::String(text.to_owned()),
    };
    let mut keys: Vec<&str> = path.split('.').map(str::trim).collect();
    let last =
        keys.pop().filter(|key| !key.is_empty()).ok_or_else(|| wrong("the key is empty".to_owned()))?;
    let mut table = tree;
    for key in keys {
        table = table
            .entry(key)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(|| wrong(format!("`{key}` is a value, not a table")))?;
    }
    table.insert(last.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests;
