//! How the rows of a batch are laid out.

use std::sync::Arc;

/// `batch` rows of `seq` tokens each; token t of row b is row `b * seq + t` of every activation.
#[derive(Clone, Debug)]
pub struct Sequences {
    /// Number of sequences.
    pub batch: usize,
    /// Tokens per sequence.
    pub seq: usize,
    /// For packed documents: per token, the index within its sequence of its document's first token.
    pub doc_starts: Option<Arc<[u32]>>,
}

impl Sequences {
    /// Sequences of one document each.
    pub fn new(batch: usize, seq: usize) -> Self {
        Self { batch, seq, doc_starts: None }
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.batch * self.seq
    }
}
