//! Tokenising documents into a cache file.

use std::borrow::Cow;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use rayon::prelude::*;

use super::{HEADER, Header, width_of};
use crate::corpus::{Corpus, Document};
use crate::{DataError, Result, Tokenizer, files};

/// Longest piece of text that is encoded at once. Longer documents are divided at spaces.
const PIECE: usize = 32 << 10;

/// Text that is tokenised in parallel before its ids are written: bounds the memory for any corpus.
const GROUP: usize = 8 << 20;

/// Tokenises documents into a cache at `path`; `text` identifies them. Documents without tokens are left out.
///
/// # Errors
/// A document that cannot be read or encoded, or a file that cannot be written.
pub fn write(
    path: &Path,
    corpus: &Corpus,
    documents: &[Document],
    tokenizer: &Tokenizer,
    text: &[u8; 32],
) -> Result<()> {
    // Encoding errors must not be mistaken for errors of the file.
    let mut failure = None;
    let written = files::write_atomically(path, |file| {
        let mut writer = Writer::new(file, tokenizer, text)?;
        if let Err(error) = writer.documents(corpus, documents) {
            failure = Some(error);
            return Err(std::io::Error::other("tokenising failed"));
        }
        writer.finish()
    });
    match failure {
        Some(Failure::Data(error)) => Err(error),
        Some(Failure::Io(error)) => Err(DataError::io(path, "write")(error)),
        None => written,
    }
}

enum Failure {
    Data(DataError),
    Io(std::io::Error),
}

impl From<DataError> for Failure {
    fn from(error: DataError) -> Self {
        Self::Data(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

struct Writer<'a, W> {
    file: &'a mut W,
    tokenizer: &'a Tokenizer,
    header: Header,
    starts: Vec<u64>,
}

impl<'a, W: Write + Seek> Writer<'a, W> {
    fn new(file: &'a mut W, tokenizer: &'a Tokenizer, text: &[u8; 32]) -> std::io::Result<Self> {
        file.write_all(&[0; HEADER])?;
        let header = Header {
            width: width_of(tokenizer.vocab_size()),
            vocab: tokenizer.vocab_size() as u32,
            eos: tokenizer.eos(),
            tokens: 0,
            documents: 0,
            text_bytes: 0,
            tokenizer: *tokenizer.hash(),
            text: *text,
        };
        Ok(Self { file, tokenizer, header, starts: vec![0] })
    }

    fn documents(&mut self, corpus: &Corpus, documents: &[Document]) -> std::result::Result<(), Failure> {
        let mut group: Vec<Cow<'_, str>> = Vec::new();
        let mut size = 0;
        for document in documents {
            let text = corpus.text(document)?;
            size += text.len();
            group.push(text);
            if size >= GROUP {
                self.group(&std::mem::take(&mut group))?;
                size = 0;
            }
        }
        self.group(&group)
    }

    /// Encodes some documents in parallel and writes them in order.
    fn group(&mut self, texts: &[Cow<'_, str>]) -> std::result::Result<(), Failure> {
        let pieces: Vec<(usize, &str)> =
            texts.iter().enumerate().flat_map(|(i, text)| pieces(text, PIECE).map(move |p| (i, p))).collect();
        // A single document may be far larger than a group.
        for (n, some) in pieces.chunks(GROUP / PIECE * 4).enumerate() {
            let encoded: Vec<Vec<u32>> =
                some.par_iter().map(|(_, piece)| self.tokenizer.encode(piece)).collect::<Result<_>>()?;
            let first = n * (GROUP / PIECE * 4);
            for (i, ids) in encoded.iter().enumerate() {
                self.ids(ids)?;
                let here = first + i;
                if pieces.get(here + 1).is_none_or(|next| next.0 != pieces[here].0) {
                    self.end_document()?;
                }
            }
        }
        Ok(())
    }

    fn ids(&mut self, ids: &[u32]) -> std::io::Result<()> {
        let mut bytes = Vec::with_capacity(ids.len() * self.header.width as usize);
        for id in ids {
            bytes.extend_from_slice(&id.to_le_bytes()[..self.header.width as usize]);
        }
        self.header.tokens += ids.len() as u64;
        self.header.text_bytes += self.tokenizer.byte_count(ids);
        self.file.write_all(&bytes)
    }

    fn end_document(&mut self) -> std::io::Result<()> {
        if self.starts.last() == Some(&self.header.tokens) {
            return Ok(());
        }
        self.ids(&[self.header.eos])?;
        self.starts.push(self.header.tokens);
        Ok(())
    }

    fn finish(mut self) -> std::io::Result<()> {
        self.header.documents = self.starts.len() as u64 - 1;
        let written = self.header.tokens * u64::from(self.header.width);
        let padding = written.next_multiple_of(8) - written;
        self.file.write_all(&[0; 8][..padding as usize])?;
        for start in &self.starts {
            self.file.write_all(&start.to_le_bytes())?;
        }
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&self.header.to_bytes())
    }
}

/// Divides a text into pieces of at most `limit` bytes whose encodings, one after another, are the encoding
/// of the whole: before a space that stands between something visible and a letter, where no byte-level
/// pre-tokenizer in use joins the two sides. A stretch without such a place is cut at any space, and
/// without spaces at a character.
pub fn pieces(text: &str, limit: usize) -> impl Iterator<Item = &str> {
    let limit = limit.max(4);
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        if rest.len() <= limit {
            return Some(std::mem::take(&mut rest));
        }
        let bytes = rest.as_bytes();
        let clean = |i: &usize| {
            bytes[*i] == b' ' && bytes[i + 1].is_ascii_alphabetic() && bytes[i - 1].is_ascii_graphic()
        };
        let space = |i: &usize| bytes[*i].is_ascii_whitespace() && !bytes[i - 1].is_ascii_whitespace();
        let backwards = || (limit / 2..limit).rev().filter(|&i| i > 0);
        let cut = backwards().find(clean).or_else(|| backwards().find(space));
        let (piece, after) = rest.split_at(cut.unwrap_or_else(|| rest.floor_char_boundary(limit)));
        rest = after;
        Some(piece)
    })
}
