//! The result of a comparison: `report.json` for programs, `report.md` for people, a table for the terminal.

mod markdown;
mod table;

use crate::{
    atomic::{AtomicError, write_atomic},
    metrics::number_or_null,
};
use serde::{Deserialize, Serialize};
use std::{
    io::{self, BufReader, Write},
    path::Path,
};

/// The file that [`Report::write`] makes for programs.
pub const JSON_FILE: &str = "report.json";
/// The file that [`Report::write`] makes for people.
pub const MARKDOWN_FILE: &str = "report.md";

/// Variants trained on the same tokens in the same order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What was trained on: a path or the name of a synthetic task.
    pub data: String,
    /// How text became tokens.
    pub tokenizer: String,
    /// Tokens that each variant was trained on.
    pub tokens: u64,
    /// Seed of the weights and of the order of the data.
    pub seed: u64,
    /// One entry for each variant.
    pub runs: Vec<RunReport>,
    /// How the numbers came about.
    #[serde(default)]
    pub setup: Setup,
}

/// How the numbers of a [`Report`] came about.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Setup {
    /// The command line.
    pub command: String,
    /// Name and version of this program, with the commit where known.
    pub version: String,
    /// Processor and threads, or accelerator.
    pub machine: String,
    /// Tokens a sequence holds in training.
    pub sequence_tokens: u64,
    /// Sequences an update is made of.
    pub batch_sequences: u64,
    /// Held-out tokens that the validation loss is the mean of.
    pub val_tokens: u64,
    /// Sequences that were decoded together.
    pub decode_sequences: u64,
    /// Tokens in the cache of each sequence when decoding began.
    pub decode_prompt_tokens: u64,
    /// Tokens that were then decoded in each sequence.
    pub decode_new_tokens: u64,
}

/// One variant of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// The variant's name.
    pub attention: String,
    /// All parameters.
    pub params: u64,
    /// Bytes of KV cache for each token, over all layers.
    pub kv_bytes_per_token: u64,
    /// Heads times rank per head, of one layer (arXiv 2412.19255, table 1).
    pub total_effective_rank: u64,
    /// Width of the space that all heads read keys from, of one layer (the same table).
    pub shared_latent_dim: u64,
    /// Validation loss in nats per token.
    #[serde(deserialize_with = "number_or_null")]
    pub val_loss: f64,
    /// Validation loss in bits per byte of text; none where tokens stand for no text.
    pub val_bits_per_byte: Option<f64>,
    /// The part of recall questions answered rightly, from 0 to 1; none on real text.
    pub recall_accuracy: Option<f64>,
    /// Tokens trained on per second, without validation.
    pub train_tokens_per_s: f64,
    /// Tokens decoded per second, over all sequences.
    pub decode_tokens_per_s: f64,
    /// The most memory resident during the training of this variant, in MiB; none where it cannot be told apart.
    pub peak_rss_mib: Option<f64>,
    /// Parameters without the embedding and the output layer.
    #[serde(default)]
    pub non_embedding_params: u64,
    /// KV cache relative to MHA with the same number of layers; none when it is not known.
    #[serde(default)]
    pub kv_ratio_to_mha: Option<f64>,
    /// Updates made.
    #[serde(default)]
    pub steps: u64,
    /// Seconds of training, without validation.
    #[serde(default)]
    pub train_seconds: f64,
    /// The shape in a few words, such as `8 heads of 64, query rank 64`.
    #[serde(default)]
    pub summary: String,
    /// Text that the trained model wrote.
    #[serde(default)]
    pub sample: Option<String>,
    /// The loss over the run.
    #[serde(default)]
    pub curve: Vec<CurvePoint>,
}

/// A point of a loss curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Tokens trained on so far.
    pub tokens: u64,
    /// Loss in nats per token.
    #[serde(deserialize_with = "number_or_null")]
    pub loss: f64,
}

impl Report {
    /// Writes `report.json` and `report.md` into `folder`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), AtomicError> {
        write_atomic(&folder.join(JSON_FILE), |file| {
            serde_json::to_writer_pretty(&mut *file, self)?;
            file.write_all(b"\n")
        })?;
        write_atomic(&folder.join(MARKDOWN_FILE), |file| file.write_all(self.to_markdown().as_bytes()))
    }

    /// Reads a `report.json`.
    ///
    /// # Errors
    /// When the file cannot be read or is no report.
    pub fn read(path: &Path) -> Result<Self, AtomicError> {
        let read = || {
            let file = std::fs::File::open(path)?;
            serde_json::from_reader(BufReader::new(file)).map_err(io::Error::from)
        };
        read().map_err(|source| AtomicError { action: "read", path: path.to_owned(), source })
    }

    /// How far the parameter counts are apart: the largest over the smallest, less 1.
    pub fn parameter_spread(&self) -> f64 {
        let counts = || self.runs.iter().map(|run| run.params);
        match (counts().min(), counts().max()) {
            (Some(least @ 1..), Some(most)) => most as f64 / least as f64 - 1.0,
            _ => 0.0,
        }
    }

    /// The report as a Markdown page; it shows `loss.svg` of the same folder.
    pub fn to_markdown(&self) -> String {
        markdown::page(self)
    }

    /// The table of variants for a terminal, of at most 110 columns.
    pub fn to_table(&self) -> String {
        table::terminal(self)
    }
}

#[cfg(test)]
mod tests;
