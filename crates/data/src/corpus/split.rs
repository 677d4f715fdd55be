//! Training and validation text.

use super::{Corpus, Document, scan};
use crate::mix::mix2;
use crate::{DataError, Result};

/// Fewest documents that are divided by document.
pub(super) const FEW_DOCUMENTS: usize = 20;

/// Greatest validation text: more of it costs training text and evaluation time, and tells nothing new.
const MAX_VALIDATION: u64 = 64 << 20;

/// Which documents train and which validate.
///
/// With 20 documents or more, whole documents are drawn by a hash of their number, so that adding documents
/// at the end moves none of the earlier ones. With fewer, the last part of the text validates, cut after a
/// line. Validation takes the given fraction, and at most about 64 MiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Documents to train on.
    pub train: Vec<Document>,
    /// Documents to validate on.
    pub validation: Vec<Document>,
}

pub(super) fn split(corpus: &Corpus, fraction: f64) -> Result<Split> {
    if !(0.0001..=0.5).contains(&fraction) {
        return Err(DataError::Range {
            key: "validation fraction",
            expected: "0.0001..=0.5".into(),
            found: fraction.to_string(),
        });
    }
    let documents = corpus.documents();
    let fraction = fraction.min(MAX_VALIDATION as f64 / corpus.bytes().max(1) as f64);
    if documents.len() >= FEW_DOCUMENTS {
        return Ok(by_document(documents, fraction));
    }
    by_tail(corpus, fraction)
}

fn by_document(documents: &[Document], fraction: f64) -> Split {
    const SALT: u64 = 0x7661_6c69_6461_7465;
    let limit = (fraction * u64::MAX as f64) as u64;
    let score = |i: usize| mix2(SALT, i as u64);
    // Of few documents the hash may pick none or all.
    let lowest = (0..documents.len()).min_by_key(|&i| score(i));
    let highest = (0..documents.len()).max_by_key(|&i| score(i));
    let (mut train, mut validation) = (Vec::new(), Vec::new());
    for (i, document) in documents.iter().enumerate() {
        let picked = (score(i) < limit || Some(i) == lowest) && Some(i) != highest;
        if picked { &mut validation } else { &mut train }.push(*document);
    }
    Split { train, validation }
}

fn by_tail(corpus: &Corpus, fraction: f64) -> Result<Split> {
    let documents = corpus.documents();
    let total = corpus.bytes();
    let mut left = ((1.0 - fraction) * total as f64) as u64;
    let mut split = Split { train: Vec::new(), validation: Vec::new() };
    for document in documents {
        let size = document.stored_bytes();
        if left >= size {
            split.train.push(*document);
            left -= size;
        } else if left == 0 {
            split.validation.push(*document);
        } else {
            let text = corpus.text(document)?;
            // JSON takes more bytes in the file than its text has.
            let share = left as f64 / size as f64;
            let cut = scan::cut_near(&text, (share * text.len() as f64) as usize);
            let parts = document.cut(cut);
            if cut > 0 {
                split.train.push(parts.0);
            }
            if cut < text.len() {
                split.validation.push(parts.1);
            }
            left = 0;
        }
    }
    for (part, name) in [(&split.train, "training"), (&split.validation, "validation")] {
        if part.is_empty() {
            return Err(DataError::Empty {
                path: corpus.root().to_path_buf(),
                found: format!("{total} bytes, too few to leave any for {name}"),
            });
        }
    }
    Ok(split)
}
