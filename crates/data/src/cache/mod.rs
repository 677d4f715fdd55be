//! Token caches: a corpus is tokenised once into a file that is then memory-mapped.
//!
//! # File format, version 1, all numbers little-endian
//! | bytes | content |
//! |---|---|
//! | 0..8 | magic `KFTOKENS` |
//! | 8..12 | version |
//! | 12..16 | bytes of a token id, 2 or 4 |
//! | 16..20 | vocabulary size |
//! | 20..24 | id that ends a document |
//! | 24..32 | number of tokens `t` |
//! | 32..40 | number of documents `d` |
//! | 40..48 | bytes of text that the tokens stand for |
//! | 48..80 | SHA-256 of the tokenizer |
//! | 80..112 | SHA-256 that identifies the text (corpus, part of the split) |
//! | 112..128 | zero |
//! | 128.. | `t` ids, each document followed by the end token, padded with zeros to a multiple of 8 |
//! | then | `d + 1` offsets (u64) of the documents' first tokens, the last one `t` |
//!
//! The file ends there. Everything is checked when it is opened, each id included, so that reading from
//! an open file cannot fail. Files are written beside their place and renamed into it.

mod write;

use std::path::{Path, PathBuf};

use memmap2::Mmap;
use rayon::prelude::*;

pub use write::{pieces, write};

use crate::{DataError, Result, Tokenizer, files};

const MAGIC: &[u8; 8] = b"KFTOKENS";
const VERSION: u32 = 1;
const HEADER: usize = 128;

/// Begin of a checked token cache.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Header {
    width: u32,
    vocab: u32,
    eos: u32,
    tokens: u64,
    documents: u64,
    text_bytes: u64,
    tokenizer: [u8; 32],
    text: [u8; 32],
}

impl Header {
    fn to_bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(MAGIC);
        for (at, value) in [(8, VERSION), (12, self.width), (16, self.vocab), (20, self.eos)] {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        for (at, value) in [(24, self.tokens), (32, self.documents), (40, self.text_bytes)] {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        bytes[48..80].copy_from_slice(&self.tokenizer);
        bytes[80..112].copy_from_slice(&self.text);
        bytes
    }

    fn from_bytes(bytes: &[u8; HEADER]) -> Self {
        let mut hashes = [[0; 32]; 2];
        hashes[0].copy_from_slice(&bytes[48..80]);
        hashes[1].copy_from_slice(&bytes[80..112]);
        Self {
            width: u32_at(bytes, 12),
            vocab: u32_at(bytes, 16),
            eos: u32_at(bytes, 20),
            tokens: u64_at(bytes, 24),
            documents: u64_at(bytes, 32),
            text_bytes: u64_at(bytes, 40),
            tokenizer: hashes[0],
            text: hashes[1],
        }
    }

    /// Offset of the document table and length of the file, unless they overflow.
    fn layout(&self) -> Option<(u64, u64)> {
        let ids = self.tokens.checked_mul(u64::from(self.width))?;
        let table = ids.checked_add(HEADER as u64)?.checked_next_multiple_of(8)?;
        let end = self.documents.checked_add(1)?.checked_mul(8)?.checked_add(table)?;
        Some((table, end))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// An open token cache.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    map: Mmap,
    header: Header,
    table: usize,
    identity: [u8; 32],
}

impl TokenFile {
    /// Opens and checks a cache of this tokenizer and text.
    ///
    /// # Errors
    /// A file that is absent, damaged, or of another tokenizer or text.
    pub fn open(path: &Path, tokenizer: &Tokenizer, text: &[u8; 32]) -> Result<Self> {
        let map = files::map(path)?;
        let wrong = |field: &'static str, expected: String, found: String| {
            Err(DataError::Cache { path: path.to_path_buf(), field, expected, found })
        };
        let Some(begin) = map.first_chunk::<HEADER>() else {
            return wrong("header", format!("{HEADER} bytes"), format!("{} bytes", map.len()));
        };
        if &begin[..8] != MAGIC {
            return wrong("magic", "KFTOKENS".into(), String::from_utf8_lossy(&begin[..8]).into_owned());
        }
        if u32_at(begin, 8) != VERSION {
            return wrong("version", VERSION.to_string(), u32_at(begin, 8).to_string());
        }
        let header = Header::from_bytes(begin);
        if header.tokenizer != *tokenizer.hash() {
            return wrong("tokenizer", files::hex(tokenizer.hash()), files::hex(&header.tokenizer));
        }
        if header.text != *text {
            return wrong("text", files::hex(text), files::hex(&header.text));
        }
        if header.vocab as usize != tokenizer.vocab_size() {
            return wrong("vocabulary size", tokenizer.vocab_size().to_string(), header.vocab.to_string());
        }
        if header.eos != tokenizer.eos() {
            return wrong("end token", tokenizer.eos().to_string(), header.eos.to_string());
        }
        if header.width != width_of(header.vocab as usize) {
            return wrong("id width", width_of(header.vocab as usize).to_string(), header.width.to_string());
        }
        let found = map.len() as u64;
        let Some((table, _)) = header.layout().filter(|&(_, end)| end == found) else {
            let expected =
                header.layout().map_or("a length below 2^64".into(), |(_, end)| format!("{end} bytes"));
            return wrong("length", expected, format!("{found} bytes"));
        };
        let identity = files::sha256_parts(&[&header.tokenizer, &header.text, &header.tokens.to_le_bytes()]);
        let file = Self { path: path.to_path_buf(), map, header, table: table as usize, identity };
        file.check()?;
        Ok(file)
    }

    fn check(&self) -> Result<()> {
        let wrong = |field: &'static str, expected: String, found: String| {
            Err(DataError::Cache { path: self.path.clone(), field, expected, found })
        };
        let ids = self.ids();
        let vocab = self.header.vocab;
        let greatest = if self.header.width == 2 {
            let greatest =
                |block: &[u8]| block.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).max();
            ids.par_chunks(1 << 20).filter_map(greatest).max().map(u32::from)
        } else {
            let id = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            ids.par_chunks(1 << 20).filter_map(|block| block.chunks_exact(4).map(id).max()).max()
        };
        if let Some(greatest) = greatest
            && greatest >= vocab
        {
            return wrong("token ids", format!("ids below {vocab}"), greatest.to_string());
        }
        let offsets = &self.map[self.table..];
        let mut before = None;
        for chunk in offsets.chunks_exact(8) {
            let offset = u64_at(chunk, 0);
            if before.map_or(offset != 0, |b| offset <= b) && self.header.tokens > 0 {
                return wrong("documents", "ascending offsets from 0".into(), offset.to_string());
            }
            before = Some(offset);
        }
        if before != Some(self.header.tokens) {
            let found = before.unwrap_or(0).to_string();
            return wrong("documents", format!("a last offset of {}", self.header.tokens), found);
        }
        Ok(())
    }

    fn ids(&self) -> &[u8] {
        &self.map[HEADER..HEADER + self.header.tokens as usize * self.header.width as usize]
    }

    /// Number of tokens, end tokens included.
    pub fn tokens(&self) -> u64 {
        self.header.tokens
    }

    /// Number of documents.
    pub fn documents(&self) -> u64 {
        self.header.documents
    }

    /// Bytes of text that the tokens stand for.
    pub fn text_bytes(&self) -> u64 {
        self.header.text_bytes
    }

    /// Appends the ids from `start` on, at most `count` of them.
    pub fn read(&self, start: u64, count: usize, into: &mut Vec<u32>) {
        let width = self.header.width as usize;
        let from = start.min(self.header.tokens) as usize;
        let to = start.saturating_add(count as u64).min(self.header.tokens) as usize;
        let bytes = &self.ids()[from * width..to * width];
        if width == 2 {
            into.extend(bytes.chunks_exact(2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))));
        } else {
            into.extend(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        }
    }

    /// First token of a document; the number of tokens for documents that there are not.
    pub fn document_start(&self, document: u64) -> u64 {
        u64_at(&self.map, self.table + document.min(self.header.documents) as usize * 8)
    }

    /// The document that a token belongs to.
    pub fn document_of(&self, token: u64) -> u64 {
        let (mut low, mut high) = (0, self.header.documents);
        while low + 1 < high {
            let middle = low + (high - low) / 2;
            if self.document_start(middle) <= token { low = middle } else { high = middle }
        }
        low
    }

    /// Names tokenizer and text.
    pub fn identity(&self) -> &[u8; 32] {
        &self.identity
    }
}

/// Two bytes hold every id of vocabularies up to 65,536.
fn width_of(vocab: usize) -> u32 {
    if vocab <= 1 << 16 { 2 } else { 4 }
}

#[cfg(test)]
mod tests;
