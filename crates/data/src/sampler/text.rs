//! Rows cut from a token cache.

use std::sync::Arc;

use super::Row;
use crate::cache::TokenFile;
use crate::mix::{Permutation, mix2};
use crate::{DataError, Result, Tokenizer, files};

/// Cuts the token stream of a cache, documents one after another with the end token between them, into
/// rows of `seq_len` tokens.
///
/// Shuffled, every pass begins at another offset below `seq_len` (so that a document is not always cut in
/// the same places) and takes the rows in an order that belongs to the seed and the pass. In order, the
/// rows cover the stream exactly once, the last one padded with end tokens that do not count.
#[derive(Debug, Clone)]
pub struct TextRows {
    file: Arc<TokenFile>,
    tokenizer: Arc<Tokenizer>,
    seq_len: usize,
    keep_documents_apart: bool,
    /// `None` takes the rows in order.
    seed: Option<u64>,
}

impl TextRows {
    /// Shuffled rows, for training.
    ///
    /// # Errors
    /// `seq_len` of zero or more tokens than there are.
    pub fn shuffled(
        file: Arc<TokenFile>,
        tokenizer: Arc<Tokenizer>,
        seq_len: usize,
        keep_documents_apart: bool,
        seed: u64,
    ) -> Result<Self> {
        check_seq_len(seq_len)?;
        let (needed, found) = (seq_len as u64 + 1, file.tokens());
        if found < needed {
            return Err(DataError::TooShort { what: "training text", seq_len, needed, found });
        }
        Ok(Self { file, tokenizer, seq_len, keep_documents_apart, seed: Some(seed) })
    }

    /// Rows in the order of the text, for validation.
    ///
    /// # Errors
    /// `seq_len` of zero or fewer than two tokens.
    pub fn in_order(
        file: Arc<TokenFile>,
        tokenizer: Arc<Tokenizer>,
        seq_len: usize,
        keep_documents_apart: bool,
    ) -> Result<Self> {
        check_seq_len(seq_len)?;
        let found = file.tokens();
        if found < 2 {
            return Err(DataError::TooShort { what: "validation text", seq_len, needed: 2, found });
        }
        Ok(Self { file, tokenizer, seq_len, keep_documents_apart, seed: None })
    }

    /// The tokens that the rows are cut from.
    pub fn file(&self) -> &TokenFile {
        &self.file
    }

    pub(super) fn seq_len(&self) -> usize {
        self.seq_len
    }

    pub(super) fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed.unwrap_or(0)
    }

    pub(super) fn identity(&self) -> String {
        format!("{} seq_len={}", files::hex(&self.file.identity()[..16]), self.seq_len)
    }

    pub(super) fn count(&self, epoch: u64) -> u64 {
        let targets = self.file.tokens() - 1;
        match self.seed {
            Some(_) => (targets - self.offset(epoch)) / self.seq_len as u64,
            None => targets.div_ceil(self.seq_len as u64),
        }
    }

    /// First token of the first row of a pass: never so far in that the last row is lost, unless the
    /// text is a single row anyway.
    fn offset(&self, epoch: u64) -> u64 {
        let Some(seed) = self.seed else { return 0 };
        let spare = (self.file.tokens() - 1 - self.seq_len as u64).min(self.seq_len as u64 - 1);
        mix2(seed ^ 0x6f66_6673, epoch) % (spare + 1)
    }

    pub(super) fn row(&self, epoch: u64, position: u64) -> Result<Row> {
        let row = match self.seed {
            Some(seed) => Permutation::new(self.count(epoch), mix2(seed, epoch)).at(position),
            None => position,
        };
        let start = self.offset(epoch) + row * self.seq_len as u64;
        let mut tokens = Vec::with_capacity(self.seq_len + 1);
        self.file.read(start, self.seq_len + 1, &mut tokens);
        let counted = tokens.len().saturating_sub(1);
        tokens.resize(self.seq_len + 1, self.tokenizer.eos());
        let mut doc_starts = vec![0; self.seq_len];
        if self.keep_documents_apart {
            self.mark_documents(start, counted, &mut doc_starts);
        }
        Ok(Row { tokens, doc_starts, recall: Vec::new(), answers: Vec::new(), counted })
    }

    fn mark_documents(&self, start: u64, counted: usize, doc_starts: &mut [u32]) {
        let mut document = self.file.document_of(start);
        let mut begin = 0;
        let mut next = self.file.document_start(document + 1);
        for (i, slot) in doc_starts.iter_mut().enumerate() {
            // Padding is a document of its own.
            if start + i as u64 == next || i == counted {
                begin = i as u32;
                document += 1;
                next = self.file.document_start(document + 1);
            }
            *slot = begin;
        }
    }
}

/// Rejects row lengths that no model has, before anything is allocated for them.
pub(crate) fn check_seq_len(seq_len: usize) -> Result<()> {
    if (1..=1 << 24).contains(&seq_len) {
        return Ok(());
    }
    Err(DataError::Range { key: "seq_len", expected: "1..=16777216".into(), found: seq_len.to_string() })
}
