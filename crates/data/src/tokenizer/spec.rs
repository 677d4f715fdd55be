//! What tokenizer to use, as written in a configuration.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{DataError, Result};

/// Greatest vocabulary that is trained or loaded.
pub(super) const MAX_VOCAB: usize = 1 << 20;

/// `bytes`, `bpe:<size>` (trained on the corpus), or the path of a tokenizer.json or its folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum TokenizerSpec {
    /// Raw bytes.
    Bytes,
    /// Byte-level BPE of this many tokens, trained on the training text.
    Bpe(usize),
    /// A tokenizer.json or the folder that has one.
    File(PathBuf),
}

impl FromStr for TokenizerSpec {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || DataError::Spec {
            key: "tokenizer",
            expected: "\"bytes\", \"bpe:<size>\" with a size of 257..=1048576, or the path of a tokenizer.json",
            found: text.to_string(),
        };
        if text.trim().is_empty() {
            return Err(wrong());
        }
        if text == "bytes" {
            return Ok(Self::Bytes);
        }
        if let Some(size) = text.strip_prefix("bpe:") {
            let size = size.parse::<usize>().map_err(|_| wrong())?;
            super::check_vocab_size(size).map_err(|_| wrong())?;
            return Ok(Self::Bpe(size));
        }
        Ok(Self::File(PathBuf::from(text)))
    }
}

impl TryFrom<String> for TokenizerSpec {
    type Error = DataError;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<TokenizerSpec> for String {
    fn from(spec: TokenizerSpec) -> Self {
        spec.to_string()
    }
}

impl fmt::Display for TokenizerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes => f.write_str("bytes"),
            Self::Bpe(size) => write!(f, "bpe:{size}"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}
