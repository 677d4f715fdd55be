//! What is to be explained: a training configuration, a model on disk, or a preset.

use crate::{
    PlanError,
    presets::{PRESETS, known},
};
use keyfold_model::{ConfigError, ModelConfig, families};
use serde::Deserialize;
use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

/// A model with the name it was asked for by.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// What was asked for.
    pub name: String,
    /// Where it was found.
    pub source: Source,
    /// The model, valid.
    pub config: ModelConfig,
}

/// Where a target was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A preset.
    Preset,
    /// A `config.json`.
    Json(PathBuf),
    /// A training configuration.
    Toml(PathBuf),
}

/// The parts of a training configuration that describe a model; `keyfold train` checks the rest.
#[derive(Deserialize)]
struct Run {
    model: ModelConfig,
    #[serde(default)]
    data: Data,
}

#[derive(Default, Deserialize)]
struct Data {
    tokenizer: Option<String>,
}

/// Ids of a tokenizer of bytes: every byte, and the end of a document.
const BYTE_IDS: usize = 257;
/// Longest file that is read as a configuration.
const LONGEST: u64 = 16 << 20;

impl Target {
    /// Finds `target`: a preset's name, a `.toml`, a `config.json`, or the folder of a model or a run.
    ///
    /// # Errors
    /// When there is no such thing, or it describes no model.
    pub fn open(target: &str) -> Result<Self, PlanError> {
        if let Some((name, text)) = PRESETS.iter().find(|(name, _)| *name == target) {
            return Self::from_json(name, Source::Preset, text, Path::new(name));
        }
        let path = Path::new(target);
        if !path.exists() {
            return Err(PlanError::Target { found: target.to_owned(), known: known() });
        }
        let file = if path.is_dir() { inside(path)? } else { path.to_owned() };
        let text = read(&file)?;
        if file.extension().is_some_and(|extension| extension == "toml") {
            return Self::from_toml(target, file, &text);
        }
        Self::from_json(target, Source::Json(file.clone()), &text, &file)
    }

    fn from_json(name: &str, source: Source, text: &str, path: &Path) -> Result<Self, PlanError> {
        let json = |source| PlanError::Json { path: path.to_owned(), source };
        let value = serde_json::from_str(text).map_err(json)?;
        let config = families::read(&value).map_err(|error| Self::wrong(name, error))?;
        Self::new(name, source, config)
    }

    fn from_toml(name: &str, path: PathBuf, text: &str) -> Result<Self, PlanError> {
        let run: Run = toml::from_str(text)
            .map_err(|source| PlanError::Toml { path: path.clone(), source: Box::new(source) })?;
        let mut config = run.model;
        if config.vocab_size == 0 {
            let tokenizer = run.data.tokenizer.as_deref().unwrap_or("bytes");
            config.vocab_size = vocabulary(tokenizer).map_err(|error| Self::wrong(name, error))?;
        }
        config.validate().map_err(|error| Self::wrong(name, error.under("model")))?;
        Self::new(name, Source::Toml(path), config)
    }

    fn new(name: &str, source: Source, config: ModelConfig) -> Result<Self, PlanError> {
        config.validate().map_err(|error| Self::wrong(name, error))?;
        Ok(Self { name: name.to_owned(), source, config })
    }

    fn wrong(name: &str, source: ConfigError) -> PlanError {
        PlanError::Config { name: name.to_owned(), source }
    }
}

/// Ids of a tokenizer as a configuration names it.
fn vocabulary(tokenizer: &str) -> Result<usize, ConfigError> {
    if tokenizer == "bytes" {
        return Ok(BYTE_IDS);
    }
    let size = tokenizer.strip_prefix("bpe:").map(|size| size.parse().ok().filter(|size| *size >= BYTE_IDS));
    match size {
        Some(Some(size)) => Ok(size),
        Some(None) => {
            Err(ConfigError::value("data.tokenizer", "bpe:SIZE with a size from 257 on", tokenizer))
        }
        None => Err(ConfigError::Missing {
            key: "model.vocab_size".into(),
            expected: format!("the number of ids of the tokenizer {tokenizer}"),
        }),
    }
}

/// The configuration in a model's or a run's folder.
fn inside(folder: &Path) -> Result<PathBuf, PlanError> {
    let files = ["config.json", "config.toml"].map(|name| folder.join(name));
    match files.iter().find(|file| file.exists()) {
        Some(file) => Ok(file.clone()),
        None => Err(PlanError::value(
            &folder.display().to_string(),
            "config.json (a model) or config.toml (a run) in it",
            "a folder without",
        )),
    }
}

fn read(path: &Path) -> Result<String, PlanError> {
    let io = |source| PlanError::Io { path: path.to_owned(), source };
    let mut text = String::new();
    File::open(path).map_err(io)?.take(LONGEST + 1).read_to_string(&mut text).map_err(io)?;
    if text.len() as u64 > LONGEST {
        return Err(PlanError::TooLong { path: path.to_owned(), limit: LONGEST });
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
