//! Text to token ids and back: raw bytes, or a byte-level BPE in the format of Hugging Face `tokenizers`.
//!
//! Both kinds are lossless and know the exact bytes of every token, so that decoding, streaming and
//! bits per byte need no help from the tokenizer library: a text is the concatenation of its tokens'
//! bytes. Special tokens stand for no text: they have no bytes, decoding leaves them out, and plain
//! [`Tokenizer::encode`] never makes them from text, whatever the text says.

mod bpe;
mod file;
mod spec;
mod stream;
mod table;

use std::path::Path;

pub use spec::TokenizerSpec;
pub use stream::StreamDecoder;

use crate::{DataError, END_OF_TEXT, Result};
use table::ByteTable;

/// Vocabulary of the raw byte tokenizer: 256 bytes and the end-of-document token.
pub const BYTE_VOCAB: usize = 257;

/// A tokenizer. Cheap to share by reference between threads.
pub struct Tokenizer {
    kind: Kind,
    table: ByteTable,
    /// Special tokens, longest text first.
    specials: Vec<(String, u32)>,
    eos: u32,
    hash: [u8; 32],
}

enum Kind {
    Bytes,
    Bpe(Box<tokenizers::Tokenizer>),
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("kind", &self.name())
            .field("eos", &self.eos)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Raw bytes: the id of a byte is its value, 256 ends a document.
    pub fn bytes() -> Self {
        let mut table = ByteTable::default();
        for byte in 0..=255u8 {
            table.push(&[byte]);
        }
        table.push(&[]);
        Self {
            kind: Kind::Bytes,
            table,
            specials: vec![(END_OF_TEXT.to_string(), 256)],
            eos: 256,
            hash: crate::files::sha256_parts(&[b"keyfold byte tokenizer"]),
        }
    }

    /// Trains a byte-level BPE of `vocab_size` tokens, [`crate::END_OF_TEXT`] included, on pieces of text. The
    /// same pieces in the same order give the same tokenizer. A text too small to fill the vocabulary
    /// gives a smaller one.
    ///
    /// # Errors
    /// `vocab_size` outside 257..=1,048,576.
    pub fn train<'a>(vocab_size: usize, pieces: impl Iterator<Item = &'a str> + Send) -> Result<Self> {
        bpe::train(vocab_size, pieces)
    }

    /// Reads a tokenizer.json, or the one in a folder.
    ///
    /// # Errors
    /// A file that is no tokenizer, is no byte-level BPE, or has no end-of-document token.
    pub fn load(path: &Path) -> Result<Self> {
        file::load(path)
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` into a folder, in Hugging Face form. The raw
    /// byte tokenizer becomes a byte-level BPE without merges, whose ids are the same.
    pub fn save(&self, folder: &Path) -> Result<()> {
        file::save(self, folder)
    }

    /// Number of rows that an embedding for this tokenizer needs: the greatest id + 1.
    pub fn vocab_size(&self) -> usize {
        self.table.len()
    }

    /// The token that ends a document.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// SHA-256 of what the tokenizer does; keys the token caches.
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// "bytes" or `bpe:SIZE`.
    pub fn name(&self) -> String {
        match self.kind {
            Kind::Bytes => "bytes".to_string(),
            Kind::Bpe(_) => format!("bpe:{}", self.vocab_size()),
        }
    }

    /// Whether ids are byte values.
    pub fn is_bytes(&self) -> bool {
        matches!(self.kind, Kind::Bytes)
    }

    /// Encodes text. Special tokens written out in the text are text.
    ///
    /// # Errors
    /// Only if the tokenizer library fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.kind {
            Kind::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Kind::Bpe(bpe) => bpe::encode(bpe, text),
        }
    }

    /// Encodes text in which special tokens may be written out, as in chat templates. Never use it on
    /// text that a stranger wrote.
    ///
    /// # Errors
    /// Only if the tokenizer library fails.
    pub fn encode_with_specials(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let next = self
                .specials
                .iter()
                .filter_map(|(content, id)| rest.find(content.as_str()).map(|at| (at, content.len(), *id)))
                .min_by_key(|&(at, len, _)| (at, std::cmp::Reverse(len)));
            let Some((at, len, id)) = next else {
                ids.extend(self.encode(rest)?);
                break;
            };
            if at > 0 {
                ids.extend(self.encode(&rest[..at])?);
            }
            ids.push(id);
            rest = &rest[at + len..];
        }
        Ok(ids)
    }

    /// The id of a special token by its text.
    pub fn special(&self, content: &str) -> Option<u32> {
        self.specials.iter().find(|(c, _)| c == content).map(|&(_, id)| id)
    }

    /// Decodes ids. Special tokens are left out; invalid UTF-8 and ids outside the vocabulary become
    /// U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        String::from_utf8_lossy(&self.decode_bytes(ids)).into_owned()
    }

    /// Decodes ids to the bytes that they stand for. Ids outside the vocabulary become U+FFFD.
    pub fn decode_bytes(&self, ids: &[u32]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            bytes.extend_from_slice(self.token_bytes(id).unwrap_or(table::REPLACEMENT));
        }
        bytes
    }

    /// The bytes that one token stands for; none for special tokens, `None` outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.table.get(id)
    }

    /// How many bytes of text the ids stand for: the divisor of bits per byte. Exact as long as the
    /// tokenizer does not normalise text before it splits it (those made here do not).
    pub fn byte_count(&self, ids: &[u32]) -> u64 {
        ids.iter().map(|&id| self.token_bytes(id).map_or(0, |b| b.len() as u64)).sum()
    }
}

fn check_vocab_size(vocab_size: usize) -> Result<()> {
    if (BYTE_VOCAB..=spec::MAX_VOCAB).contains(&vocab_size) {
        return Ok(());
    }
    Err(DataError::Range {
        key: "tokenizer vocabulary size",
        expected: format!("{BYTE_VOCAB}..={}", spec::MAX_VOCAB),
        found: vocab_size.to_string(),
    })
}

#[cfg(test)]
mod tests;
