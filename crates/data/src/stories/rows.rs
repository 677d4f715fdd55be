//! Rows packed with stories.

use std::sync::Arc;

use super::{FIRST_VALIDATION_STORY, STORIES, Story, StoryGenerator, VERSION, Vocabulary};
use crate::sampler::{AnswerInfo, Row};
use crate::{Result, Tokenizer};

/// Packs whole stories, the end token between them, into rows. Every row begins with a story; the one
/// that does not fit is cut and its missing part is never shown, so that no answer is asked for whose
/// statement is out of sight.
#[derive(Debug, Clone)]
pub struct StoryRows {
    generator: StoryGenerator,
    tokenizer: Arc<Tokenizer>,
    seq_len: usize,
    keep_documents_apart: bool,
    seed: u64,
    vocabulary: Vocabulary,
    first: u64,
    /// Numbers set aside for a row, so that any row can be written without those before it.
    pub(super) stride: u64,
}

/// No story has fewer tokens than it has words, nor fewer words than this.
const FEWEST_TOKENS: usize = 60;

impl StoryRows {
    /// Stories for training, or for validation: those of one never appear in the other.
    ///
    /// # Errors
    /// `seq_len` of zero.
    pub fn new(
        tokenizer: Arc<Tokenizer>,
        seq_len: usize,
        keep_documents_apart: bool,
        seed: u64,
        vocabulary: Vocabulary,
        validation: bool,
    ) -> Result<Self> {
        crate::sampler::check_seq_len(seq_len)?;
        Ok(Self {
            generator: StoryGenerator::new(seed, vocabulary),
            tokenizer,
            seq_len,
            keep_documents_apart,
            seed,
            vocabulary,
            first: if validation { FIRST_VALIDATION_STORY } else { 0 },
            stride: (seq_len / FEWEST_TOKENS + 1) as u64,
        })
    }

    pub(crate) fn count(&self) -> u64 {
        (STORIES - FIRST_VALIDATION_STORY) / self.stride
    }

    pub(crate) fn seq_len(&self) -> usize {
        self.seq_len
    }

    pub(crate) fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    pub(crate) fn identity(&self) -> String {
        let tokenizer = crate::files::hex(&self.tokenizer.hash()[..8]);
        format!("{:?} stories v{VERSION} tokenizer={tokenizer} seq_len={}", self.vocabulary, self.seq_len)
    }

    pub(crate) fn row(&self, position: u64) -> Result<Row> {
        let size = self.seq_len + 1;
        let mut row = Row {
            tokens: Vec::with_capacity(size + 512),
            doc_starts: Vec::with_capacity(size + 512),
            recall: Vec::with_capacity(size + 512),
            answers: Vec::new(),
            counted: self.seq_len,
        };
        let mut index = self.first + (position % self.count()) * self.stride;
        while row.tokens.len() < size {
            self.append(&self.generator.story(index), &mut row)?;
            index += 1;
        }
        row.tokens.truncate(size);
        row.recall.truncate(size);
        row.doc_starts.truncate(self.seq_len);
        if !self.keep_documents_apart {
            row.doc_starts.fill(0);
        }
        Ok(row)
    }

    fn append(&self, story: &Story, row: &mut Row) -> Result<()> {
        let begin = row.tokens.len();
        row.tokens.extend(self.tokenizer.encode(&story.text)?);
        row.tokens.push(self.tokenizer.eos());
        row.doc_starts.resize(row.tokens.len(), begin as u32);
        row.recall.resize(row.tokens.len(), 0);
        let mut token = begin;
        let mut at = 0;
        for answer in &story.answers {
            let length = |token: usize| self.tokenizer.byte_count(&row.tokens[token..=token]) as usize;
            while token < row.tokens.len() && at + length(token) <= answer.start {
                at += length(token);
                token += 1;
            }
            let first = token;
            while token < row.tokens.len() && at < answer.end {
                at += length(token);
                token += 1;
            }
            // An answer that the row cuts off cannot be given as a whole.
            if token > self.seq_len + 1 {
                break;
            }
            row.answers.push(AnswerInfo {
                kind: answer.kind,
                distance: answer.distance as u32,
                candidates: answer.candidates as u32,
            });
            row.recall[first..token].fill(row.answers.len() as u32);
        }
        Ok(())
    }
}
