//! Finding files, checking that they are text, and finding documents in them.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{Corpus, Document, Part, Skipped};
use crate::{DataError, END_OF_TEXT, Result, files};

/// Blocks of a file that are checked in parallel.
const BLOCK: usize = 4 << 20;

/// Deepest folder that is read.
const MAX_DEPTH: usize = 64;

/// All files below a folder, in the order of their paths.
pub(super) fn list(root: &Path, skipped: &mut Vec<Skipped>) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![(root.to_path_buf(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(DataError::io(&folder, "list"))? {
            let entry = entry.map_err(DataError::io(&folder, "list"))?;
            let path = entry.path();
            let mut skip = |reason: &str| {
                let reason = format!("{}: {reason}", path.display());
                skipped.push(Skipped { path: path.clone(), reason });
            };
            let kind = entry.file_type().map_err(DataError::io(&path, "read"))?;
            if entry.file_name().to_string_lossy().starts_with('.') {
                skip("hidden");
            } else if kind.is_dir() && depth < MAX_DEPTH {
                folders.push((path, depth + 1));
            } else if kind.is_file() || kind.is_symlink() && path.is_file() {
                found.push(path);
            } else {
                // Links to folders can form circles; pipes and sockets can block for ever.
                skip("not a file");
            }
        }
    }
    found.sort();
    skipped.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

pub(super) fn extension(path: &Path) -> String {
    path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// Whether the name says that the file is text.
pub(super) fn claims_text(path: &Path) -> bool {
    ["txt", "md", "text", "jsonl"].contains(&extension(path).as_str())
}

/// Checks that a file is UTF-8 without NUL; gives a digest of its content.
pub(super) fn check(path: &Path, content: &[u8]) -> Result<[u8; 32]> {
    let blocks = content.len().div_ceil(BLOCK);
    let digests = (0..blocks)
        .into_par_iter()
        .map(|i| {
            // A character that crosses the border belongs to the block in which it begins.
            let start = char_start(content, i * BLOCK);
            let end = char_start(content, ((i + 1) * BLOCK).min(content.len()));
            let block = &content[start..end];
            let wrong = |at: usize, found| DataError::NotText {
                path: path.to_path_buf(),
                offset: (start + at) as u64,
                found,
            };
            if block.contains(&0) {
                return Err(wrong(block.iter().position(|&b| b == 0).unwrap_or(0), "a NUL byte"));
            }
            std::str::from_utf8(block).map_err(|e| wrong(e.valid_up_to(), "invalid UTF-8"))?;
            Ok(Sha256::digest(block).into())
        })
        .collect::<Vec<Result<[u8; 32]>>>();
    let digests = digests.into_iter().collect::<Result<Vec<_>>>()?;
    let parts: Vec<&[u8]> = digests.iter().map(|d| d.as_slice()).collect();
    Ok(files::sha256_parts(&parts))
}

/// The nearest place at or before `at` where a character can begin.
fn char_start(content: &[u8], at: usize) -> usize {
    let continues = |i: usize| content.get(i).is_some_and(|&b| b & 0xC0 == 0x80);
    (0..4).map(|back| at.saturating_sub(back)).find(|&i| !continues(i)).unwrap_or(at)
}

/// The parts of a text between separator lines, without the line breaks around them. Parts of white
/// space only are none. A text without separators is one part as it is.
pub(super) fn separated(content: &[u8]) -> Vec<(u64, u64)> {
    let bom = if content.starts_with(b"\xEF\xBB\xBF") { 3 } else { 0 };
    let mut parts = Vec::new();
    let mut start = bom;
    for line in line_ranges(content, bom) {
        // Every text has long stretches without '<': the cheap test comes first.
        if content[line.0] == b'<' && content[line.0..line.1].trim_ascii_end() == END_OF_TEXT.as_bytes() {
            parts.push(trim_breaks(content, start, line.0));
            start = line.1;
        }
    }
    let rest = if start == bom { (start, content.len()) } else { trim_breaks(content, start, content.len()) };
    parts.push(rest);
    parts.retain(|&(a, b)| !content[a..b].trim_ascii().is_empty());
    parts.into_iter().map(|(a, b)| (a as u64, b as u64)).collect()
}

/// The lines of a JSON-lines file that are not blank.
pub(super) fn lines(content: &[u8]) -> Vec<(u64, u64)> {
    let bom = if content.starts_with(b"\xEF\xBB\xBF") { 3 } else { 0 };
    line_ranges(content, bom)
        .filter(|&(a, b)| !content[a..b].trim_ascii().is_empty())
        .map(|(a, b)| (a as u64, b as u64))
        .collect()
}

/// Ranges of the lines, each with its line break.
fn line_ranges(content: &[u8], from: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
    let mut at = from;
    content[from..].split_inclusive(|&b| b == b'\n').map(move |line| {
        let start = at;
        at += line.len();
        (start, at)
    })
}

fn trim_breaks(content: &[u8], mut start: usize, mut end: usize) -> (usize, usize) {
    let is_break = |b: u8| b == b'\n' || b == b'\r';
    while start < end && is_break(content[start]) {
        start += 1;
    }
    while end > start && is_break(content[end - 1]) {
        end -= 1;
    }
    (start, end)
}

/// The text of a JSON line, or what is wrong with it.
pub(super) fn json_text(line: &[u8]) -> std::result::Result<String, String> {
    #[derive(serde::Deserialize)]
    struct Line {
        text: String,
    }
    serde_json::from_slice::<Line>(line).map(|l| l.text).map_err(|e| e.to_string())
}

/// Line number, from 1, of a byte offset.
pub(super) fn line_number(content: &[u8], offset: u64) -> u64 {
    content.iter().take(offset as usize).filter(|&&b| b == b'\n').count() as u64 + 1
}

/// Longest piece of a sample.
const PIECE: usize = 64 << 10;

pub(super) fn sample(corpus: &Corpus, documents: &[Document], bytes: u64) -> Result<Vec<String>> {
    let total: u64 = documents.iter().map(Document::stored_bytes).sum();
    let mut pieces = Vec::new();
    if total <= bytes {
        for document in documents {
            let text = corpus.text(document)?;
            pieces.extend(crate::cache::pieces(&text, PIECE).map(str::to_string));
        }
        return Ok(pieces);
    }
    // Piece k of a sample of n pieces lies at total * k / n, the first at the very beginning.
    let count = (bytes / PIECE as u64).max(1);
    let (mut next, mut passed) = (0, 0);
    for document in documents {
        let end = passed + document.stored_bytes();
        let at = |k: u64| (u128::from(total) * u128::from(k) / u128::from(count)) as u64;
        if next < count && at(next) < end {
            let text = corpus.text(document)?;
            let mut from = 0;
            while next < count && at(next) < end {
                let wanted = text.floor_char_boundary((at(next).max(passed) - passed) as usize);
                from = from.max(wanted.min(text.len()));
                let to = text.floor_char_boundary((from + PIECE).min(text.len()));
                pieces.push(text[from..to].to_string());
                from = to;
                next += 1;
            }
        }
        passed = end;
    }
    pieces.retain(|p| !p.is_empty());
    Ok(pieces)
}

/// Where to cut a text near `at`: after the line that it is in, else before it, else after or before a
/// word, else at a character.
pub(super) fn cut_near(text: &str, at: usize) -> usize {
    let at = text.floor_char_boundary(at);
    let (before, after) = text.split_at(at);
    let inside = |cut: usize| (cut > 0 && cut < text.len()).then_some(cut);
    let next = |c: char| after.find(c).and_then(|i| inside(at + i + 1));
    let last = |c: char| before.rfind(c).and_then(|i| inside(i + 1));
    [next('\n'), last('\n'), next(' '), last(' ')].into_iter().flatten().next().unwrap_or(at)
}

impl Document {
    /// The two parts of a whole document.
    pub(super) fn cut(self, at: usize) -> (Self, Self) {
        (Self { part: Part::Before(at as u64), ..self }, Self { part: Part::From(at as u64), ..self })
    }
}
