//! Everything that can go wrong with data, with the file or key, what was expected and what was found.

use std::path::{Path, PathBuf};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file system call failed.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried ("read", "write", ...).
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The data path is absent.
    #[error("{}: no such file or folder{hint}", path.display())]
    NotFound {
        /// The path as given.
        path: PathBuf,
        /// What the user may have meant; empty or beginning with a separator.
        hint: String,
    },
    /// A file or folder without any text.
    #[error("{}: expected text, found {found}", path.display())]
    Empty {
        /// The file or folder.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// A file that is not UTF-8 text.
    #[error("{}: expected UTF-8 text, found {found} at byte offset {offset}", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// Where the first bad byte is.
        offset: u64,
        /// What is there.
        found: &'static str,
    },
    /// A line of a JSON-lines file that cannot be used.
    #[error("{}:{line}: expected a JSON object with a string field \"text\", found {found}", path.display())]
    JsonLine {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: u64,
        /// What is there.
        found: String,
    },
    /// A specification string that names nothing.
    #[error("{key}: expected {expected}, found \"{found}\"")]
    Spec {
        /// Which specification.
        key: &'static str,
        /// What may stand there.
        expected: &'static str,
        /// What stood there.
        found: String,
    },
    /// A number out of its range.
    #[error("{key}: expected {expected}, found {found}")]
    Range {
        /// The setting.
        key: &'static str,
        /// The allowed values.
        expected: String,
        /// The value.
        found: String,
    },
    /// A tokenizer file that cannot be used.
    #[error("{}: not a usable BPE tokenizer: {reason}", path.display())]
    Tokenizer {
        /// The tokenizer.json.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A JSON file with something else in it.
    #[error("{}: expected {expected}, found {found}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What should be there.
        expected: &'static str,
        /// What is there, or why it is no JSON.
        found: String,
    },
    /// A key of a JSON file with a value that cannot be used.
    #[error("{}: `{key}` is {found}: expected {expected}", path.display())]
    JsonKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What would have been accepted.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// A model folder without a chat template.
    #[error(
        "{}: no chat template: expected chat_template.jinja, or chat_template in tokenizer_config.json",
        path.display()
    )]
    NoChatTemplate {
        /// The folder.
        path: PathBuf,
    },
    /// A chat template that is wrong, or refused the messages.
    #[error("{origin}: chat template: {reason}")]
    ChatTemplate {
        /// Where the template comes from.
        origin: String,
        /// Why not.
        reason: String,
    },
    /// The tokenizer library refused to train or encode.
    #[error("tokenizer: cannot {action}: {reason}")]
    TokenizerLibrary {
        /// What was tried.
        action: &'static str,
        /// The library's answer.
        reason: String,
    },
    /// A token cache file that is damaged or belongs to something else.
    #[error("{}: token cache: {field}: expected {expected}, found {found}", path.display())]
    Cache {
        /// The cache file.
        path: PathBuf,
        /// The part of the file.
        field: &'static str,
        /// What should stand there.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// Too little text for even one row.
    #[error(
        "{what}: expected at least {needed} tokens for one row of seq_len {seq_len}, found {found}; \
         give more text or a smaller seq_len"
    )]
    TooShort {
        /// Which split.
        what: &'static str,
        /// Row length.
        seq_len: usize,
        /// Tokens needed.
        needed: u64,
        /// Tokens there are.
        found: u64,
    },
    /// A saved sampler state that belongs to other data.
    #[error("sampler state: {field}: expected {expected}, found {found}; the run was started on other data")]
    State {
        /// The part of the state.
        field: &'static str,
        /// What this data set has.
        expected: String,
        /// What the state says.
        found: String,
    },
    /// A corpus name that is not in the table.
    #[error("corpus: expected one of {known}, found \"{found}\"")]
    UnknownCorpus {
        /// The names there are.
        known: String,
        /// The name given.
        found: String,
    },
    /// The hub did not answer, or not with the file.
    #[error(
        "corpus {name}: the hub could not be reached for {url}: {reason}. Without a connection, put the file at \
         {} (or anywhere else) and pass its path as the data source", place.display()
    )]
    Hub {
        /// The corpus.
        name: &'static str,
        /// What was asked for.
        url: String,
        /// What came back.
        reason: String,
        /// Where the file would have been put.
        place: PathBuf,
    },
    /// The hub did not answer, or not with what was asked for.
    #[error(
        "model {name}: the hub {problem} {what} of {url}: {reason}. Without a connection, copy a model \
         folder here by other means and pass its path"
    )]
    HubModel {
        /// The model.
        name: String,
        /// Its page.
        url: String,
        /// Whether the hub was silent or refused.
        problem: &'static str,
        /// What was asked for.
        what: String,
        /// What came back.
        reason: String,
    },
    /// A model of the hub that cannot be used here.
    #[error("model {name}: no safetensors weights: expected model.safetensors or its index, found {}", if found.is_empty() { "no weights" } else { found })]
    NoWeights {
        /// The model.
        name: String,
        /// Weights in other forms.
        found: String,
    },
    /// A file whose content is not what it should be.
    #[error("{}: expected sha256 {expected} ({origin}), found {found}; delete the file to fetch it again", path.display())]
    Checksum {
        /// The file.
        path: PathBuf,
        /// Hex digest that it should have.
        expected: String,
        /// Who says so.
        origin: &'static str,
        /// Hex digest that it has.
        found: String,
    },
}

impl DataError {
    /// Wraps a file system error, for `map_err`.
    pub(crate) fn io<'a>(path: &'a Path, action: &'static str) -> impl Fn(std::io::Error) -> DataError + 'a {
        move |source| DataError::Io { path: path.to_path_buf(), action, source }
    }
}
