//! What data to use, as written in a configuration.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::stories::Vocabulary;
use crate::{DataError, Result};

const STORIES: &str = "synthetic:stories";
const LARGE_STORIES: &str = "synthetic:stories:large";

/// `synthetic:stories`, `synthetic:stories:large`, or the path of a text file, JSON-lines file or folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SourceSpec {
    /// Stories made up on the way, of few different words; see [`crate::stories`].
    Stories,
    /// The same of many different words.
    LargeStories,
    /// Text on disk; see [`crate::corpus`].
    Path(PathBuf),
}

impl SourceSpec {
    /// The vocabulary of made-up stories, which have no end; `None` for text on disk, which has one.
    pub fn stories(&self) -> Option<Vocabulary> {
        match self {
            Self::Stories => Some(Vocabulary::Small),
            Self::LargeStories => Some(Vocabulary::Large),
            Self::Path(_) => None,
        }
    }
}

impl FromStr for SourceSpec {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self> {
        if text == STORIES {
            return Ok(Self::Stories);
        }
        if text == LARGE_STORIES {
            return Ok(Self::LargeStories);
        }
        if text.trim().is_empty() || text.starts_with("synthetic:") {
            return Err(DataError::Spec {
                key: "data source",
                expected: "\"synthetic:stories\", \"synthetic:stories:large\" or the path of a text file or folder",
                found: text.to_string(),
            });
        }
        Ok(Self::Path(PathBuf::from(text)))
    }
}

impl TryFrom<String> for SourceSpec {
    type Error = DataError;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<SourceSpec> for String {
    fn from(spec: SourceSpec) -> Self {
        spec.to_string()
    }
}

impl fmt::Display for SourceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stories => f.write_str(STORIES),
            Self::LargeStories => f.write_str(LARGE_STORIES),
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Training data, and validation data of its own if there is any.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    /// Where the text comes from.
    pub source: SourceSpec,
    /// A file or folder to validate on. Without one, part of the source is kept from training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val: Option<PathBuf>,
}

impl FromStr for DataSpec {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self> {
        Ok(Self { source: text.parse()?, val: None })
    }
}

impl fmt::Display for DataSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.val {
            Some(val) => write!(f, "{} (validation {})", self.source, val.display()),
            None => write!(f, "{}", self.source),
        }
    }
}
