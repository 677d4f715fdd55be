//! One data set for the trainer, whatever it is made of.

mod prepare;
mod spec;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use prepare::{Prepare, prepare};
pub use spec::{DataSpec, SourceSpec};

use crate::sampler::{Rows, Sampler};
use crate::{Batch, Result, SamplerState, Tokenizer};

/// Training batches without end, validation batches in order, and the tokenizer of both.
#[derive(Debug)]
pub struct Dataset {
    tokenizer: Arc<Tokenizer>,
    train: Sampler,
    validation: Rows,
    description: Description,
}

impl Dataset {
    /// Opens, tokenises (once) and splits what the specifications name; see [`prepare`].
    ///
    /// # Errors
    /// Anything wrong with the specifications, the files or the cache folder.
    pub fn prepare(spec: &DataSpec, tokenizer: &crate::TokenizerSpec, options: &Prepare) -> Result<Self> {
        prepare(spec, tokenizer, options)
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// The next training batch of `batch` rows.
    ///
    /// # Errors
    /// `batch` of zero, or a tokenizer failure.
    pub fn next_batch(&mut self, batch: usize) -> Result<Batch> {
        self.train.next_batch(batch)
    }

    /// Where training is; [`Dataset::restore`] continues with exactly the next batch.
    pub fn state(&self) -> SamplerState {
        self.train.state().clone()
    }

    /// Goes to where another data set of the same specification and seed was.
    ///
    /// # Errors
    /// A state of other data.
    pub fn restore(&mut self, state: &SamplerState) -> Result<()> {
        self.train.restore(state)
    }

    /// Passes over the training text so far.
    pub fn epochs(&self) -> f64 {
        self.train.epochs()
    }

    /// Validation batches of up to `batch` rows, always the same ones, with at most `max_tokens` targets
    /// together (but at least one row). Stories have no end: there `max_tokens` says how many.
    pub fn validation(&self, batch: usize, max_tokens: u64) -> Validation<'_> {
        let rows = (max_tokens / self.validation.seq_len() as u64).max(1);
        let end = rows.min(self.validation.count(0));
        Validation { rows: &self.validation, batch: batch.max(1) as u64, next: 0, end }
    }

    /// What the data set is, for reports.
    pub fn describe(&self) -> &Description {
        &self.description
    }
}

/// Validation batches, in order.
#[derive(Debug)]
pub struct Validation<'a> {
    rows: &'a Rows,
    batch: u64,
    next: u64,
    end: u64,
}

impl Iterator for Validation<'_> {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.end {
            return None;
        }
        let to = self.next.saturating_add(self.batch).min(self.end);
        let places: Vec<(u64, u64)> = (self.next..to).map(|p| (0, p)).collect();
        self.next = to;
        Some(self.rows.batch(&places))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.end - self.next).div_ceil(self.batch) as usize;
        (left, Some(left))
    }
}

/// Facts about a data set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// The data specification.
    pub source: String,
    /// "bytes" or `bpe:SIZE`.
    pub tokenizer: String,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Tokens of a row.
    pub seq_len: usize,
    /// Training text; `None` for stories, which have no end.
    pub train: Option<Amount>,
    /// Validation text; `None` for stories.
    pub validation: Option<Amount>,
    /// Bytes of text per token, end tokens included.
    pub bytes_per_token: f64,
    /// Files of a folder that were left out.
    pub skipped: Vec<String>,
}

/// How much text there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// Documents.
    pub documents: u64,
    /// Tokens, end tokens included.
    pub tokens: u64,
    /// Bytes of text.
    pub bytes: u64,
}

impl std::fmt::Display for Description {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {} ({:.2} bytes/token)", self.source, self.tokenizer, self.bytes_per_token)?;
        for (name, amount) in [("train", self.train), ("validation", self.validation)] {
            match amount {
                Some(a) => write!(f, "; {name}: {} documents, {} tokens", a.documents, a.tokens)?,
                None => write!(f, "; {name}: without end")?,
            }
        }
        match self.skipped.len() {
            0 => Ok(()),
            n => write!(f, "; {n} files left out"),
        }
    }
}

#[cfg(test)]
mod tests;
