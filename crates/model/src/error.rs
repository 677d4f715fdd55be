//! Errors of configurations, weights and checkpoint folders. Each names the key or file, what was expected and what came.

use keyfold_core::{LayoutError, units};
use std::path::PathBuf;

/// A configuration that does not describe a model.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value outside its range.
    #[error("`{key}` is {found}: expected {expected}")]
    Value {
        /// Dotted path of the key.
        key: String,
        /// What would have been accepted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A key that is not there.
    #[error("`{key}` is missing: expected {expected}")]
    Missing {
        /// Dotted path of the key.
        key: String,
        /// What would have been accepted.
        expected: String,
    },
    /// Sizes whose product does not fit the address space.
    #[error("the model's sizes overflow: {what}")]
    Overflow {
        /// Which product.
        what: String,
    },
    /// A cache that cannot be laid out.
    #[error("the attention's cache cannot be laid out: {0}")]
    Cache(#[from] LayoutError),
    /// No member of the family has the wanted size.
    #[error("no {kind} model within {tolerance:.1} % of {target} parameters: the nearest has {nearest}")]
    NoMatch {
        /// Attention kind.
        kind: String,
        /// Wanted number of parameters.
        target: usize,
        /// The closest found.
        nearest: usize,
        /// Allowed deviation in percent.
        tolerance: f64,
    },
}

impl ConfigError {
    /// A value outside its range.
    pub fn value(key: impl Into<String>, expected: impl Into<String>, found: impl ToString) -> Self {
        Self::Value { key: key.into(), expected: expected.into(), found: found.to_string() }
    }

    /// The same error with `prefix.` before its key.
    #[must_use]
    pub fn under(self, prefix: &str) -> Self {
        match self {
            Self::Value { key, expected, found } => {
                Self::Value { key: format!("{prefix}.{key}"), expected, found }
            }
            Self::Missing { key, expected } => Self::Missing { key: format!("{prefix}.{key}"), expected },
            other => other,
        }
    }
}

/// Fails with the key's name unless `value` is at least 1.
pub(crate) fn positive(key: &str, value: usize) -> Result<(), ConfigError> {
    if value == 0 { Err(ConfigError::value(key, "at least 1", value)) } else { Ok(()) }
}

/// A weight that is absent or has another shape.
#[derive(Debug, thiserror::Error)]
pub enum WeightError {
    /// No weight of that name.
    #[error("weight `{0}` is not declared by this model")]
    Unknown(String),
    /// Weights that were to be used as one matrix do not follow one another.
    #[error("weights {0:?} are not adjacent rows of one width")]
    NotAdjacent(Vec<String>),
}

/// A checkpoint folder that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Reading or writing failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A JSON file that does not parse.
    #[error("{path}: not valid JSON: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// A weights file that does not parse.
    #[error("{path}: not a valid safetensors file: {source}")]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: safetensors::SafeTensorError,
    },
    /// The model's configuration is wrong.
    #[error("{path}: {source}")]
    Config {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: ConfigError,
    },
    /// A tensor is missing from the file.
    #[error("{path}: tensor `{name}` is missing: expected {expected:?}")]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        expected: Vec<usize>,
    },
    /// A tensor has another shape or type.
    #[error("{path}: tensor `{name}` is {found}: expected {expected}")]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Shape and types that would have been accepted.
        expected: String,
        /// What the file holds.
        found: String,
    },
    /// A tensor that this model does not have.
    #[error("{path}: tensor `{name}` does not belong to this model")]
    ExtraTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// The weights do not fit into memory.
    #[error("{path}: the weights take {}: {} are free", units::bytes(*needed), units::bytes(*available))]
    Memory {
        /// The folder.
        path: PathBuf,
        /// Bytes.
        needed: u64,
        /// Bytes.
        available: u64,
    },
    /// A tensor that two shards hold.
    #[error("{path}: tensor `{name}` is in another shard too")]
    Repeated {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// The model's weights are not declared as its modules use them.
    #[error(transparent)]
    Weight(#[from] WeightError),
}

impl CheckpointError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
