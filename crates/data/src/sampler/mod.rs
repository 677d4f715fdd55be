//! Rows and batches in a fixed order that can be stopped and resumed.
//!
//! A *row* is `seq_len + 1` consecutive tokens: `seq_len` inputs and, one place on, their targets. A source
//! of rows numbers them; the sampler walks through the numbers and only remembers how far it is.

mod text;

use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use text::TextRows;
pub(crate) use text::check_seq_len;

use crate::stories::{AnswerKind, StoryRows};
use crate::{DataError, Result, Tokenizer};

/// Some rows of tokens. All arrays are `[batch, seq_len]`, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Token ids that the model reads.
    pub inputs: Vec<u32>,
    /// Token ids that it should predict: `inputs` one place on.
    pub targets: Vec<u32>,
    /// For every input, the place within its row where its document begins. A query may only see keys
    /// from there on. All zero when documents are not kept apart.
    pub doc_starts: Vec<u32>,
    /// Number of rows.
    pub batch: usize,
    /// Tokens of a row.
    pub seq_len: usize,
    /// Which targets count. `None`: all of them. Only the last batch of a validation pass has a mask,
    /// for the padding behind the end of the text.
    pub loss_mask: Option<Vec<bool>>,
    /// For every target, the answer that it is part of, counted from 1; 0 for targets of no answer.
    /// `None` for data without answers.
    pub recall: Option<Vec<u32>>,
    /// What is known about answer `n` at index `n - 1`.
    pub answers: Vec<AnswerInfo>,
    /// Bytes of text that the counted targets stand for.
    pub target_bytes: u64,
}

/// About one answer of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerInfo {
    /// What is asked for.
    pub kind: AnswerKind,
    /// Bytes of text since the word was last used.
    pub distance: u32,
    /// One in so many is the best guess without knowing who has what.
    pub candidates: u32,
}

impl Batch {
    /// Number of targets that count for the loss.
    pub fn counted_targets(&self) -> usize {
        self.loss_mask.as_ref().map_or(self.targets.len(), |m| m.iter().filter(|&&counts| counts).count())
    }

    /// For every answer, whether all of its tokens are what the model holds most likely.
    ///
    /// `predicted` has the model's most likely token for every target, `[batch, seq_len]`; a shorter
    /// slice counts as wrong where it ends.
    pub fn answered(&self, predicted: &[u32]) -> Vec<bool> {
        let mut right = vec![true; self.answers.len()];
        for (i, &answer) in self.recall.iter().flatten().enumerate() {
            if answer > 0 && predicted.get(i) != self.targets.get(i) {
                right[answer as usize - 1] = false;
            }
        }
        right
    }
}

/// Where a sampler is: all that a checkpoint needs to continue with exactly the next batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplerState {
    /// Seed of the order.
    pub seed: u64,
    /// Passes over the data that are complete.
    pub epoch: u64,
    /// Rows taken of the current pass.
    pub position: u64,
    /// Names the data, so that a run is not resumed on other data unnoticed.
    pub data: String,
}

/// Where rows come from.
#[derive(Debug, Clone)]
pub enum Rows {
    /// Tokenised text.
    Text(TextRows),
    /// Stories written on demand.
    Stories(StoryRows),
}

impl Rows {
    /// Rows of one pass; at least 1.
    pub fn count(&self, epoch: u64) -> u64 {
        match self {
            Self::Text(rows) => rows.count(epoch),
            Self::Stories(rows) => rows.count(),
        }
    }

    /// Tokens of a row, without the one that is only a target.
    pub fn seq_len(&self) -> usize {
        match self {
            Self::Text(rows) => rows.seq_len(),
            Self::Stories(rows) => rows.seq_len(),
        }
    }

    /// Row number `position` of a pass.
    pub(crate) fn row(&self, epoch: u64, position: u64) -> Result<Row> {
        match self {
            Self::Text(rows) => rows.row(epoch, position),
            Self::Stories(rows) => rows.row(position),
        }
    }

    fn tokenizer(&self) -> &Arc<Tokenizer> {
        match self {
            Self::Text(rows) => rows.tokenizer(),
            Self::Stories(rows) => rows.tokenizer(),
        }
    }

    fn seed(&self) -> u64 {
        match self {
            Self::Text(rows) => rows.seed(),
            Self::Stories(rows) => rows.seed(),
        }
    }

    fn identity(&self) -> String {
        match self {
            Self::Text(rows) => rows.identity(),
            Self::Stories(rows) => rows.identity(),
        }
    }

    /// Joins rows, given as (epoch, position), to a batch.
    pub(crate) fn batch(&self, places: &[(u64, u64)]) -> Result<Batch> {
        let seq_len = self.seq_len();
        let rows: Vec<Row> = match self {
            // Copying from a map is not worth a parallel region; writing and encoding stories is.
            Self::Text(_) => places.iter().map(|&(e, p)| self.row(e, p)).collect::<Result<_>>()?,
            Self::Stories(_) => places.par_iter().map(|&(e, p)| self.row(e, p)).collect::<Result<_>>()?,
        };
        let size = rows.len() * seq_len;
        let mut batch = Batch {
            inputs: Vec::with_capacity(size),
            targets: Vec::with_capacity(size),
            doc_starts: Vec::with_capacity(size),
            batch: rows.len(),
            seq_len,
            loss_mask: rows.iter().any(|r| r.counted < seq_len).then(|| Vec::with_capacity(size)),
            recall: matches!(self, Self::Stories(_)).then(|| Vec::with_capacity(size)),
            answers: Vec::new(),
            target_bytes: 0,
        };
        for row in rows {
            batch.inputs.extend_from_slice(&row.tokens[..seq_len]);
            batch.targets.extend_from_slice(&row.tokens[1..]);
            batch.doc_starts.extend_from_slice(&row.doc_starts);
            batch.target_bytes += self.tokenizer().byte_count(&row.tokens[1..=row.counted]);
            if let Some(mask) = &mut batch.loss_mask {
                mask.extend((0..seq_len).map(|i| i < row.counted));
            }
            if let Some(recall) = &mut batch.recall {
                let before = batch.answers.len() as u32;
                recall.extend(row.recall[1..].iter().map(|&n| if n == 0 { 0 } else { before + n }));
                batch.answers.extend(row.answers);
            }
        }
        Ok(batch)
    }
}

/// One row before it is joined to others.
#[derive(Debug)]
pub(crate) struct Row {
    /// `seq_len + 1` token ids.
    pub(crate) tokens: Vec<u32>,
    /// `seq_len` places.
    pub(crate) doc_starts: Vec<u32>,
    /// `seq_len + 1` answer numbers, from 1 within the row; empty without answers.
    pub(crate) recall: Vec<u32>,
    pub(crate) answers: Vec<AnswerInfo>,
    /// How many targets, from the first, are text and not padding.
    pub(crate) counted: usize,
}

/// Walks over rows in a shuffled order, pass after pass, for ever.
#[derive(Debug, Clone)]
pub struct Sampler {
    rows: Rows,
    state: SamplerState,
}

impl Sampler {
    /// A sampler at the beginning.
    pub fn new(rows: Rows) -> Self {
        let state = SamplerState { seed: rows.seed(), epoch: 0, position: 0, data: rows.identity() };
        Self { rows, state }
    }

    /// The next `batch` rows. A batch at the end of a pass is filled from the next one.
    ///
    /// # Errors
    /// `batch` of zero, or a tokenizer failure.
    pub fn next_batch(&mut self, batch: usize) -> Result<Batch> {
        if batch == 0 {
            return Err(DataError::Range { key: "batch", expected: "at least 1".into(), found: "0".into() });
        }
        let (mut epoch, mut position) = (self.state.epoch, self.state.position);
        let mut places = Vec::with_capacity(batch);
        while places.len() < batch {
            if position >= self.rows.count(epoch) {
                (epoch, position) = (epoch + 1, 0);
            }
            places.push((epoch, position));
            position += 1;
        }
        let batch = self.rows.batch(&places)?;
        (self.state.epoch, self.state.position) = (epoch, position);
        Ok(batch)
    }

    /// Where the sampler is.
    pub fn state(&self) -> &SamplerState {
        &self.state
    }

    /// Goes to where another sampler of the same data was.
    ///
    /// # Errors
    /// A state of other data, another seed, or outside the data.
    pub fn restore(&mut self, state: &SamplerState) -> Result<()> {
        let wrong = |field, expected: String, found: String| Err(DataError::State { field, expected, found });
        if state.data != self.state.data {
            return wrong("data", self.state.data.clone(), state.data.clone());
        }
        if state.seed != self.state.seed {
            return wrong("seed", self.state.seed.to_string(), state.seed.to_string());
        }
        let count = self.rows.count(state.epoch);
        if state.position > count || state.epoch == u64::MAX {
            return wrong("position", format!("at most {count}"), state.position.to_string());
        }
        self.state = state.clone();
        Ok(())
    }

    /// Fraction of the data seen, counted in passes. Stays 0 for stories, which have no end.
    pub fn epochs(&self) -> f64 {
        self.state.epoch as f64 + self.state.position as f64 / self.rows.count(self.state.epoch) as f64
    }

    /// The rows that it walks over.
    pub fn rows(&self) -> &Rows {
        &self.rows
    }
}

#[cfg(test)]
mod tests;
