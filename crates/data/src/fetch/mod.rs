//! Public corpora and models from the Hugging Face hub.
//!
//! A fetched file lies in the folder that was asked for, under its own name. Where the checksum of a file
//! is known it is written in the table below, and a file that differs is refused. Where it is not, the
//! checksum of the first download is put beside the file (`<file>.sha256`) and holds from then on; that
//! finds later damage, but not a first download that was already wrong. Interrupted downloads are resumed.

mod model;

pub use model::model;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::ApiBuilder;
use hf_hub::{Repo, RepoType};

use crate::{DataError, Result, files};

/// A corpus that can be fetched: one file of plain text or JSON lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubCorpus {
    /// What to call it.
    pub name: &'static str,
    /// Data set repository on the hub.
    pub repo: &'static str,
    /// Commit or branch.
    pub revision: &'static str,
    /// File in the repository.
    pub file: &'static str,
    /// Licence of the text.
    pub licence: &'static str,
    /// Size, to a few percent.
    pub bytes: u64,
    /// SHA-256 of the file, where it is known from elsewhere than a download.
    pub sha256: Option<&'static str>,
}

/// What can be fetched.
pub const CORPORA: &[HubCorpus] = &[
    HubCorpus {
        name: "tinyshakespeare",
        repo: "TokenBender/tinyshakespeare",
        revision: "main",
        file: "tinyshakespeare.txt",
        licence: "public domain",
        bytes: 1_115_394,
        sha256: Some("86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"),
    },
    HubCorpus {
        name: "tinystories",
        repo: "roneneldan/TinyStories",
        revision: "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64",
        file: "TinyStoriesV2-GPT4-train.txt",
        licence: "CDLA-Sharing-1.0",
        bytes: 2_230_000_000,
        sha256: Some("6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443"),
    },
    HubCorpus {
        name: "tinystories-valid",
        repo: "roneneldan/TinyStories",
        revision: "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64",
        file: "TinyStoriesV2-GPT4-valid.txt",
        licence: "CDLA-Sharing-1.0",
        bytes: 22_500_000,
        sha256: Some("6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d"),
    },
    // The corpus itself only exists as Parquet; this is a sample of 483,606 of its documents.
    HubCorpus {
        name: "fineweb-edu",
        repo: "ModalitiesTeam/FW_EDU_SUBSET_500k_docs",
        revision: "main",
        file: "fineweb_edu_num_docs_483606.jsonl",
        licence: "ODC-By-1.0",
        bytes: 2_540_000_000,
        sha256: None,
    },
];

const ENDPOINT: &str = "https://huggingface.co";

/// The corpus of a name.
///
/// # Errors
/// A name that is not in the table.
pub fn corpus(name: &str) -> Result<&'static HubCorpus> {
    CORPORA.iter().find(|c| c.name == name).ok_or_else(|| DataError::UnknownCorpus {
        known: CORPORA.iter().map(|c| c.name).collect::<Vec<_>>().join(", "),
        found: name.to_string(),
    })
}

/// Fetches a corpus into a folder and gives the path of its file. A file that is already there is checked
/// and used without asking the hub. `HF_ENDPOINT` names another hub.
///
/// # Errors
/// An unknown name, a hub that does not answer, or a file with another checksum.
pub fn fetch(name: &str, folder: &Path) -> Result<PathBuf> {
    fetch_from(&endpoint(), corpus(name)?, folder)
}

fn endpoint() -> String {
    std::env::var("HF_ENDPOINT").ok().filter(|e| !e.is_empty()).unwrap_or_else(|| ENDPOINT.to_owned())
}

fn fetch_from(endpoint: &str, corpus: &'static HubCorpus, folder: &Path) -> Result<PathBuf> {
    let file_name = Path::new(corpus.file).file_name().unwrap_or(corpus.file.as_ref());
    let place = folder.join(file_name);
    if !place.exists() {
        download(endpoint, corpus, folder, &place)?;
    }
    verify(corpus, &place)?;
    Ok(place)
}

fn download(endpoint: &str, corpus: &'static HubCorpus, folder: &Path, place: &Path) -> Result<()> {
    // Kept until the file is whole: the library resumes from what lies there.
    let partial = folder.join(format!(".{}-download", corpus.name));
    std::fs::create_dir_all(&partial).map_err(DataError::io(&partial, "create"))?;
    let failed = |e: hf_hub::api::sync::ApiError| DataError::Hub {
        name: corpus.name,
        url: format!("{endpoint}/datasets/{}/resolve/{}/{}", corpus.repo, corpus.revision, corpus.file),
        reason: e.to_string(),
        place: place.to_path_buf(),
    };
    let api = ApiBuilder::new()
        .with_endpoint(endpoint.to_string())
        .with_cache_dir(partial.clone())
        .with_token(None)
        .with_retries(3)
        .with_progress(std::io::stderr().is_terminal())
        .build()
        .map_err(failed)?;
    let repo = Repo::with_revision(corpus.repo.to_string(), RepoType::Dataset, corpus.revision.to_string());
    let found = api.repo(repo).get(corpus.file).map_err(failed)?;
    // The library gives a link into its store.
    let found = found.canonicalize().map_err(DataError::io(&found, "read"))?;
    std::fs::rename(&found, place).map_err(DataError::io(place, "write"))?;
    std::fs::remove_dir_all(&partial).map_err(DataError::io(&partial, "remove"))
}

/// Checks a file against the table, or against what its first download was.
fn verify(corpus: &HubCorpus, place: &Path) -> Result<()> {
    let found = files::hex(&files::sha256_file(place)?);
    let mut beside = place.as_os_str().to_owned();
    beside.push(".sha256");
    let beside = PathBuf::from(beside);
    let (expected, origin) = match (corpus.sha256, std::fs::read_to_string(&beside)) {
        (Some(known), _) => (known.to_string(), "published checksum"),
        (None, Ok(line)) => {
            (line.split_whitespace().next().unwrap_or_default().to_string(), "from the first download")
        }
        (None, Err(_)) => {
            let name = place.file_name().unwrap_or_default().to_string_lossy().into_owned();
            tracing::info!("no published checksum for {}; recording {found}", corpus.name);
            return files::write_text(&beside, &format!("{found}  {name}\n"));
        }
    };
    if found == expected {
        return Ok(());
    }
    Err(DataError::Checksum { path: place.to_path_buf(), expected, origin, found })
}

/// What to add to "no such file" when the path is the name of a corpus.
pub(crate) fn hint(path: &Path) -> String {
    match path.to_str().and_then(|name| corpus(name).ok()) {
        Some(corpus) => {
            format!("; {} is a corpus of the hub: fetch it first and give the path of its file", corpus.name)
        }
        None => String::new(),
    }
}

#[cfg(test)]
mod tests;
