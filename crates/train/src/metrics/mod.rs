//! `metrics.jsonl`: one JSON object a line for every logged step.
//!
//! Lines are in order of their steps, and each is written with one call, so a killed process loses at most the end of
//! the last one. A resumed run cuts the file back to its checkpoint and goes on as if it had never stopped. A number that
//! is infinite or not a number is `null` and is read as NaN.

use serde::{Deserialize, Deserializer, Serialize};
use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// What is known about a run after `step` steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Updates made so far, counted from 1.
    pub step: u64,
    /// Tokens trained on so far.
    pub tokens: u64,
    /// Training loss of this step in nats per token.
    #[serde(deserialize_with = "number_or_null")]
    pub loss: f64,
    /// Learning rate of this step.
    pub lr: f64,
    /// Norm of the whole gradient before clipping.
    #[serde(deserialize_with = "number_or_null")]
    pub grad_norm: f64,
    /// Tokens trained on per second since the previous record.
    pub tokens_per_s: f64,
    /// Seconds of training since the start of the run, over all its resumptions.
    pub elapsed_s: f64,
    /// Validation loss in nats per token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
    /// Validation loss in bits per byte of text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_bits_per_byte: Option<f64>,
    /// The part of recall questions answered rightly, from 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recall_accuracy: Option<f64>,
}

/// Reads what is not finite, and so written as `null`, as NaN.
pub(crate) fn number_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Why metrics could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The file could not be opened, read or written.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// The metrics file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line is not a record.
    #[error("{}, line {line}: {source}", path.display())]
    Line {
        /// The metrics file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A line's step is not above the step of the line before.
    #[error("{}, line {line}: step {step} comes after step {previous}", path.display())]
    Order {
        /// The metrics file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// Its step.
        step: u64,
        /// The step of the line before.
        previous: u64,
    },
    /// The last line has no end: the writing process was killed.
    #[error("{}, line {line}: the line has no end; resuming the run repairs it", path.display())]
    Torn {
        /// The metrics file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
}

/// Appends records to a metrics file.
#[derive(Debug)]
pub struct MetricsWriter {
    path: PathBuf,
    file: File,
}

impl MetricsWriter {
    /// Starts a new file; what `path` held is lost.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, MetricsError> {
        let path = path.into();
        let file = File::create(&path).map_err(|source| MetricsError::Io { path: path.clone(), source })?;
        Ok(Self { path, file })
    }

    /// Goes on with a file after a checkpoint of `step`: records of later steps and a torn last line are cut off.
    ///
    /// # Errors
    /// When there is no such file, or any other line is wrong; the file is then untouched.
    pub fn resume(path: impl Into<PathBuf>, step: u64) -> Result<Self, MetricsError> {
        let path = path.into();
        let contents = Contents::read(&path)?;
        let kept = contents.records.iter().take_while(|(record, _)| record.step <= step).last();
        let length = kept.map_or(0, |(_, end)| *end);
        let open = || {
            let file = OpenOptions::new().append(true).open(&path)?;
            file.set_len(length as u64)?;
            Ok(file)
        };
        let file = open().map_err(|source| MetricsError::Io { path: path.clone(), source })?;
        Ok(Self { path, file })
    }

    /// Appends one line. It reaches the system at once, and so survives the death of this process.
    ///
    /// # Errors
    /// When the system refuses, such as on a full disk.
    pub fn write(&mut self, record: &Record) -> Result<(), MetricsError> {
        let mut write = || {
            let mut line = serde_json::to_vec(record)?;
            line.push(b'\n');
            self.file.write_all(&line)
        };
        write().map_err(|source| MetricsError::Io { path: self.path.clone(), source })
    }

    /// Waits until the disk has all lines, so that they survive a loss of power. Belongs before each checkpoint.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn sync(&self) -> Result<(), MetricsError> {
        self.file.sync_data().map_err(|source| MetricsError::Io { path: self.path.clone(), source })
    }
}

/// All records of a file, in order.
///
/// # Errors
/// When the file cannot be read, or names the first line that is wrong.
pub fn read(path: &Path) -> Result<Vec<Record>, MetricsError> {
    let contents = Contents::read(path)?;
    if contents.torn {
        return Err(MetricsError::Torn { path: path.to_owned(), line: contents.records.len() + 1 });
    }
    Ok(contents.records.into_iter().map(|(record, _)| record).collect())
}

/// A metrics file, parsed.
struct Contents {
    /// Each record with the offset at which its line ends.
    records: Vec<(Record, usize)>,
    /// Whether something without a line end follows.
    torn: bool,
}

impl Contents {
    fn read(path: &Path) -> Result<Self, MetricsError> {
        let bytes =
            std::fs::read(path).map_err(|source| MetricsError::Io { path: path.to_owned(), source })?;
        let mut records: Vec<(Record, usize)> = Vec::new();
        let mut end = 0;
        for (index, text) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
            let Some(text) = text.strip_suffix(b"\n") else {
                return Ok(Self { records, torn: true });
            };
            let line = index + 1;
            end += text.len() + 1;
            let record: Record = serde_json::from_slice(text).map_err(|source| MetricsError::Line {
                path: path.to_owned(),
                line,
                source,
            })?;
            if let Some((previous, _)) = records.last().filter(|(previous, _)| previous.step >= record.step) {
                let (step, previous) = (record.step, previous.step);
                return Err(MetricsError::Order { path: path.to_owned(), line, step, previous });
            }
            records.push((record, end));
        }
        Ok(Self { records, torn: false })
    }
}

#[cfg(test)]
mod tests;
