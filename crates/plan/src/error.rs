//! Errors: each names the key, option or file, what was expected and what came.

use keyfold_model::ConfigError;
use std::path::PathBuf;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A target that is neither on disk nor a preset.
    #[error(
        "{found}: no such file or folder, and no preset: expected a training configuration (.toml), a model folder, a config.json or one of {known}"
    )]
    Target {
        /// What was given.
        found: String,
        /// The presets.
        known: String,
    },
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file is larger than a configuration can be.
    #[error("{}: longer than {limit} bytes: expected a configuration", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The longest that is read.
        limit: u64,
    },
    /// A `config.json` that does not parse.
    #[error("{}: not valid JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// A training configuration that does not parse.
    #[error("{}: {source}", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// The cause, with the place.
        source: Box<toml::de::Error>,
    },
    /// A configuration that describes no model.
    #[error("{name}: {source}")]
    Config {
        /// The target.
        name: String,
        /// The cause.
        source: ConfigError,
    },
    /// A model that cannot be described.
    #[error(transparent)]
    Model(#[from] ConfigError),
    /// An option outside its range.
    #[error("{key} is {found}: expected {expected}")]
    Value {
        /// The option.
        key: String,
        /// What would have been accepted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A figure that does not fit 64 bits.
    #[error("{0} overflow: expected a smaller model, context or batch")]
    Overflow(&'static str),
    /// Hardware that is not known.
    #[error("--hardware: `{found}` is not known: expected one of {known}")]
    Hardware {
        /// What was given.
        found: String,
        /// What is known.
        known: String,
    },
    /// No design fits the budget.
    #[error(
        "no design keeps its cache within {budget} bytes per token at {parameters} parameters: {nearest}"
    )]
    Budget {
        /// Bytes per token.
        budget: u64,
        /// Parameters of the target.
        parameters: u64,
        /// What came nearest.
        nearest: String,
    },
    /// No design in the budget is as expressive as the target.
    #[error(
        "--min-cost: no design in the budget has the target's total effective rank of {wanted}: the largest is {found}; --max-ter takes that one"
    )]
    Rank {
        /// The target's.
        wanted: u64,
        /// The largest found.
        found: u64,
    },
}

impl PlanError {
    /// An option outside its range.
    pub fn value(key: &str, expected: impl Into<String>, found: impl ToString) -> Self {
        Self::Value { key: key.to_owned(), expected: expected.into(), found: found.to_string() }
    }
}
