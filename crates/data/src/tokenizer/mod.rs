//! Text to token ids and back: raw bytes, or a BPE in the format of Hugging Face `tokenizers`, byte-level or of
//! characters with bytes for the rest (SentencePiece).
//!
//! All know the exact bytes of every token, so that decoding, streaming and
//! bits per byte need no help from the tokenizer library: a text is the concatenation of its tokens'
//! bytes (some SentencePiece files put a space before it, which decoding takes away again). Those made here are lossless;
//! some published files have no token for a control character, which then gets lost. Special tokens stand for no text: they have no bytes, decoding leaves them out, and plain
//! [`Tokenizer::encode`] never makes them from text, whatever the text says.

mod alphabet;
mod bpe;
mod chat;
mod config;
mod file;
mod spec;
mod stream;
mod table;

use std::path::Path;
use std::sync::OnceLock;

pub use chat::{ChatTemplate, Message};
pub use spec::TokenizerSpec;
pub use stream::StreamDecoder;

use crate::{DataError, END_OF_TEXT, Result, files};
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
    /// Made when it is first asked for.
    hash: OnceLock<[u8; 32]>,
    /// Whether encoding puts a space before every text.
    leading_space: bool,
}

enum Kind {
    Bytes,
    Bpe(Box<Bpe>),
}

/// The library's tokenizer in its two moods.
struct Bpe {
    /// Special tokens spelled out in a text are text.
    data: tokenizers::Tokenizer,
    /// They are what they spell; made when it is first needed.
    markup: OnceLock<Box<tokenizers::Tokenizer>>,
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
            hash: OnceLock::new(),
            leading_space: false,
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
    /// A file that is no tokenizer, has no bytes for its tokens, or has no end-of-document token.
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
        self.hash.get_or_init(|| match &self.kind {
            Kind::Bytes => files::sha256_parts(&[b"keyfold byte tokenizer"]),
            Kind::Bpe(bpe) => {
                // The library could read it, so it can write it; the tokens alone would still tell most apart.
                let text = bpe.text().unwrap_or_else(|_| format!("{:?}", self.table));
                files::sha256_parts(&[text.as_bytes(), &self.eos.to_le_bytes()])
            }
        })
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
            Kind::Bpe(bpe) => bpe.encode(text, false),
        }
    }

    /// Encodes text as the beginning of a sequence: with the tokens that the file's post-processor puts around it, such as
    /// a begin-of-sequence token. Special tokens written out in the text are text.
    ///
    /// # Errors
    /// Only if the tokenizer library fails.
    pub fn encode_sequence(&self, text: &str) -> Result<Vec<u32>> {
        match &self.kind {
            Kind::Bytes => self.encode(text),
            Kind::Bpe(bpe) => bpe.encode(text, true),
        }
    }

    /// What [`Tokenizer::encode_sequence`] puts before a text.
    ///
    /// # Errors
    /// Only if the tokenizer library fails.
    pub fn sequence_prefix(&self) -> Result<Vec<u32>> {
        let (whole, text) = (self.encode_sequence("a")?, self.encode("a")?);
        let at = whole.windows(text.len().max(1)).position(|ids| ids == text).unwrap_or(0);
        Ok(whole[..at].to_vec())
    }

    /// Encodes text in which special tokens may be written out, as in chat templates. Never use it on
    /// text that a stranger wrote.
    ///
    /// # Errors
    /// Only if the tokenizer library fails.
    pub fn encode_with_specials(&self, text: &str) -> Result<Vec<u32>> {
        if let Kind::Bpe(bpe) = &self.kind {
            return bpe.encode_markup(text);
        }
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

    /// All special tokens with their text, longest first.
    pub fn specials(&self) -> impl Iterator<Item = (&str, u32)> {
        self.specials.iter().map(|(content, id)| (content.as_str(), *id))
    }

    /// Decodes ids. Special tokens are left out; invalid UTF-8 and ids outside the vocabulary become
    /// U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes = self.decode_bytes(ids);
        let text = bytes.strip_prefix(b" ").filter(|_| self.leading_space).unwrap_or(&bytes);
        String::from_utf8_lossy(text).into_owned()
    }

    /// Decodes ids to the bytes that they stand for, a space that encoding put before the text included. Ids outside the vocabulary become U+FFFD.
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
