//! Files and folders to documents.
//!
//! | given | documents |
//! |---|---|
//! | a text file | the parts between lines that are exactly `<|endoftext|>`; the whole file without any |
//! | a `.jsonl` file | the `text` field of every line |
//! | a folder | its files by the rules above, recursively, in the order of their paths |
//!
//! Files are memory-mapped and never loaded as a whole. Opening a corpus reads every byte once, to check
//! that it is UTF-8 and to fingerprint it; documents are then borrowed from the map. Line breaks around a
//! separator do not belong to a document, and a byte order mark does not belong to a file.
//!
//! In a folder, hidden files, empty files, links to folders and files that are not text (images, archives)
//! are left out and listed in [`Corpus::skipped`]; a file that calls itself text (`.txt`, `.md`, `.text`,
//! `.jsonl`) and is not is an error.

mod scan;
mod split;

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

pub use split::Split;

use crate::{DataError, Result, files};

/// Documents on disk.
#[derive(Debug)]
pub struct Corpus {
    root: PathBuf,
    files: Vec<SourceFile>,
    documents: Vec<Document>,
    skipped: Vec<Skipped>,
    fingerprint: [u8; 32],
}

#[derive(Debug)]
struct SourceFile {
    path: PathBuf,
    map: Mmap,
    json_lines: bool,
}

/// A document, or the part of one before or after a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Document {
    file: u32,
    start: u64,
    end: u64,
    part: Part,
}

/// Offsets count bytes of the document's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Whole,
    Before(u64),
    From(u64),
}

/// A file that a folder's corpus leaves out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

impl Document {
    /// Bytes that the document takes in its file; with JSON a little more than its text.
    fn stored_bytes(&self) -> u64 {
        self.end - self.start
    }
}

impl Corpus {
    /// Opens a file or folder.
    ///
    /// # Errors
    /// Nothing there, nothing but emptiness there, or a file that is not UTF-8 text.
    pub fn open(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|source| {
            if source.kind() == std::io::ErrorKind::NotFound {
                let hint = crate::fetch::hint(path);
                return DataError::NotFound { path: path.to_path_buf(), hint };
            }
            DataError::io(path, "read")(source)
        })?;
        let mut corpus = Self {
            root: path.to_path_buf(),
            files: Vec::new(),
            documents: Vec::new(),
            skipped: Vec::new(),
            fingerprint: [0; 32],
        };
        let mut parts = Vec::new();
        if metadata.is_dir() {
            for found in scan::list(path, &mut corpus.skipped)? {
                if let Some(digest) = corpus.add(&found, true)? {
                    let name = found.strip_prefix(path).unwrap_or(&found);
                    parts.push(files::sha256_parts(&[name.to_string_lossy().as_bytes(), &digest]));
                }
            }
        } else if let Some(digest) = corpus.add(path, false)? {
            parts.push(digest);
        }
        if corpus.documents.is_empty() {
            let found = match (metadata.is_dir(), corpus.skipped.len()) {
                (false, _) => "a file without any".to_string(),
                (true, 0) => "an empty folder".to_string(),
                (true, n) => {
                    format!("only files that were left out ({n}, the first: {})", corpus.skipped[0].reason)
                }
            };
            return Err(DataError::Empty { path: path.to_path_buf(), found });
        }
        let parts: Vec<&[u8]> = parts.iter().map(|p| p.as_slice()).collect();
        corpus.fingerprint = files::sha256_parts(&parts);
        Ok(corpus)
    }

    /// Takes in one file; its digest, or `None` if it was left out.
    fn add(&mut self, path: &Path, in_folder: bool) -> Result<Option<[u8; 32]>> {
        let map = files::map(path)?;
        let json_lines = scan::extension(path) == "jsonl";
        let digest = match scan::check(path, &map) {
            Ok(digest) => digest,
            Err(error @ DataError::NotText { .. }) if in_folder && !scan::claims_text(path) => {
                self.skipped.push(Skipped { path: path.to_path_buf(), reason: error.to_string() });
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let file = u32::try_from(self.files.len()).map_err(|_| DataError::Range {
            key: "files of a corpus",
            expected: format!("at most {}", u32::MAX),
            found: "more".into(),
        })?;
        let before = self.documents.len();
        let spans = if json_lines { scan::lines(&map) } else { scan::separated(&map) };
        self.documents.extend(spans.into_iter().map(|(start, end)| Document {
            file,
            start,
            end,
            part: Part::Whole,
        }));
        if self.documents.len() == before {
            if !in_folder {
                return Err(DataError::Empty {
                    path: path.to_path_buf(),
                    found: "a file without any".into(),
                });
            }
            self.skipped
                .push(Skipped { path: path.to_path_buf(), reason: format!("{}: no text", path.display()) });
            return Ok(None);
        }
        self.files.push(SourceFile { path: path.to_path_buf(), map, json_lines });
        Ok(Some(digest))
    }

    /// What was opened.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// All documents.
    pub fn documents(&self) -> &[Document] {
        &self.documents
    }

    /// Files that were left out of a folder.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// SHA-256 of the content and the names of the files.
    pub fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    /// Bytes of all documents as they lie in the files.
    pub fn bytes(&self) -> u64 {
        self.documents.iter().map(Document::stored_bytes).sum()
    }

    /// The text of a document.
    ///
    /// # Errors
    /// A line of JSON without a text, named by file and line.
    pub fn text(&self, document: &Document) -> Result<Cow<'_, str>> {
        let Some(file) = self.files.get(document.file as usize) else {
            return Err(DataError::NotFound {
                path: self.root.clone(),
                hint: " (document of another corpus)".into(),
            });
        };
        let bytes = file.map.get(document.start as usize..document.end as usize).unwrap_or_default();
        let text = if file.json_lines {
            Cow::Owned(scan::json_text(bytes).map_err(|found| DataError::JsonLine {
                path: file.path.clone(),
                line: scan::line_number(&file.map, document.start),
                found,
            })?)
        } else {
            // Checked when the corpus was opened, and again here because the file may have been
            // rewritten since.
            Cow::Borrowed(std::str::from_utf8(bytes).map_err(|e| DataError::NotText {
                path: file.path.clone(),
                offset: document.start + e.valid_up_to() as u64,
                found: "invalid UTF-8",
            })?)
        };
        Ok(match document.part {
            Part::Whole => text,
            Part::Before(cut) => slice(text, |t| t.get(..cut as usize)),
            Part::From(cut) => slice(text, |t| t.get(cut as usize..)),
        })
    }

    /// Divides the documents into training and validation; see [`Split`].
    ///
    /// # Errors
    /// A fraction outside 0.0001..=0.5, or too little text to divide.
    pub fn split(&self, fraction: f64) -> Result<Split> {
        split::split(self, fraction)
    }

    /// About `bytes` bytes of these documents for training a tokenizer: the beginning, and pieces spread
    /// evenly over the rest. The same documents give the same sample.
    ///
    /// # Errors
    /// As [`Corpus::text`].
    pub fn sample(&self, documents: &[Document], bytes: u64) -> Result<Vec<String>> {
        scan::sample(self, documents, bytes)
    }
}

fn slice<'a>(text: Cow<'a, str>, cut: impl Fn(&str) -> Option<&str>) -> Cow<'a, str> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(cut(text).unwrap_or_default()),
        Cow::Owned(text) => Cow::Owned(cut(&text).unwrap_or_default().to_string()),
    }
}

#[cfg(test)]
mod tests;
