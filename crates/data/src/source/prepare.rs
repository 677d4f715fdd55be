//! From specifications to a data set: open, split, train or load the tokenizer, tokenise, cache.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Amount, DataSpec, Dataset, Description, SourceSpec};
use crate::cache::{self, TokenFile};
use crate::corpus::{Corpus, Document};
use crate::sampler::{Rows, Sampler, TextRows};
use crate::stories::{self, StoryGenerator, StoryRows, Vocabulary};
use crate::{DataError, Result, Tokenizer, TokenizerSpec, files};

/// Text that a BPE is trained on at most.
const SAMPLE: u64 = 16 << 20;

/// Text of stories that a BPE is trained on.
const STORY_SAMPLE: usize = 2 << 20;

/// How to prepare a data set.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepare {
    /// Tokens of a row.
    pub seq_len: usize,
    /// Seed of the order, and of the stories.
    pub seed: u64,
    /// Folder for token caches and trained tokenizers.
    pub cache_dir: PathBuf,
    /// Whether attention is to stay inside of documents; see [`crate::Batch::doc_starts`].
    pub keep_documents_apart: bool,
    /// Part of the source to validate on when there is no validation data of its own.
    pub val_fraction: f64,
}

impl Prepare {
    /// Documents apart, a tenth for validation.
    pub fn new(seq_len: usize, seed: u64, cache_dir: impl Into<PathBuf>) -> Self {
        Self { seq_len, seed, cache_dir: cache_dir.into(), keep_documents_apart: true, val_fraction: 0.1 }
    }
}

/// Prepares a data set. What takes long (training a tokenizer, tokenising) is done once and kept in the
/// cache folder under names made of what it depends on; damaged caches are made anew.
///
/// # Errors
/// Anything wrong with the specifications, the files or the cache folder.
pub fn prepare(spec: &DataSpec, tokenizer: &TokenizerSpec, options: &Prepare) -> Result<Dataset> {
    crate::sampler::check_seq_len(options.seq_len)?;
    match (&spec.source, spec.source.stories()) {
        (SourceSpec::Path(path), _) => prepare_text(spec, path, tokenizer, options),
        (_, vocabulary) => prepare_stories(spec, vocabulary.unwrap_or(Vocabulary::Small), tokenizer, options),
    }
}

fn prepare_stories(
    spec: &DataSpec,
    vocabulary: Vocabulary,
    tokenizer: &TokenizerSpec,
    options: &Prepare,
) -> Result<Dataset> {
    if let Some(val) = &spec.val {
        return Err(DataError::Spec {
            key: "data val",
            expected: "nothing beside synthetic:stories, which has validation stories of its own",
            found: val.display().to_string(),
        });
    }
    let identity = files::sha256_parts(&[format!("{vocabulary:?} stories v{}", stories::VERSION).as_bytes()]);
    let tokenizer = Arc::new(make_tokenizer(tokenizer, &options.cache_dir, &identity, || {
        // Not the run's seed: runs that differ only in their seed share a tokenizer.
        let generator = StoryGenerator::new(0, vocabulary);
        let mut size = 0;
        let texts = (0..).map(|i| generator.story(i).text).take_while(|t| {
            size += t.len();
            size <= STORY_SAMPLE
        });
        Ok(texts.collect())
    })?);
    let rows = |validation| {
        StoryRows::new(
            tokenizer.clone(),
            options.seq_len,
            options.keep_documents_apart,
            options.seed,
            vocabulary,
            validation,
        )
    };
    let generator = StoryGenerator::new(options.seed, vocabulary);
    let (mut bytes, mut tokens) = (0, 0);
    for i in 0..64 {
        let text = generator.story(stories::FIRST_VALIDATION_STORY + i).text;
        bytes += text.len();
        tokens += tokenizer.encode(&text)?.len() + 1;
    }
    let description = Description {
        source: spec.to_string(),
        tokenizer: tokenizer.name(),
        vocab_size: tokenizer.vocab_size(),
        seq_len: options.seq_len,
        train: None,
        validation: None,
        bytes_per_token: bytes as f64 / tokens as f64,
        skipped: Vec::new(),
    };
    let (train, validation) = (Sampler::new(Rows::Stories(rows(false)?)), Rows::Stories(rows(true)?));
    Ok(Dataset { train, validation, tokenizer, description })
}

fn prepare_text(
    spec: &DataSpec,
    path: &Path,
    tokenizer: &TokenizerSpec,
    options: &Prepare,
) -> Result<Dataset> {
    let corpus = Corpus::open(path)?;
    let other = spec.val.as_deref().map(|val| open_validation(path, val)).transpose()?;
    let (train, validation) = match &other {
        Some(other) => (corpus.documents().to_vec(), other.documents().to_vec()),
        None => {
            let split = corpus.split(options.val_fraction)?;
            (split.train, split.validation)
        }
    };
    let validation_corpus = other.as_ref().unwrap_or(&corpus);
    let how = if other.is_some() { "all".to_string() } else { format!("split v1 {}", options.val_fraction) };
    let identity = |corpus: &Corpus, part: &str| {
        files::sha256_parts(&[corpus.fingerprint(), how.as_bytes(), part.as_bytes()])
    };
    let train_identity = identity(&corpus, "train");
    let validation_identity =
        identity(validation_corpus, if other.is_some() { "train" } else { "validation" });

    let tokenizer = Arc::new(make_tokenizer(tokenizer, &options.cache_dir, &train_identity, || {
        corpus.sample(&train, SAMPLE)
    })?);
    let open = |corpus: &Corpus, documents: &[Document], identity: &[u8; 32]| {
        open_or_write(&options.cache_dir, corpus, documents, &tokenizer, identity).map(Arc::new)
    };
    let train = open(&corpus, &train, &train_identity)?;
    let validation = open(validation_corpus, &validation, &validation_identity)?;
    let amount = |file: &TokenFile| Amount {
        documents: file.documents(),
        tokens: file.tokens(),
        bytes: file.text_bytes(),
    };
    let skipped = corpus.skipped().iter().chain(other.iter().flat_map(|c| c.skipped()));
    let description = Description {
        source: spec.to_string(),
        tokenizer: tokenizer.name(),
        vocab_size: tokenizer.vocab_size(),
        seq_len: options.seq_len,
        train: Some(amount(&train)),
        validation: Some(amount(&validation)),
        bytes_per_token: train.text_bytes() as f64 / train.tokens().max(1) as f64,
        skipped: skipped.map(|s| s.reason.clone()).collect(),
    };
    for reason in &description.skipped {
        tracing::warn!("left out: {reason}");
    }
    let (apart, seq_len) = (options.keep_documents_apart, options.seq_len);
    let train = TextRows::shuffled(train, tokenizer.clone(), seq_len, apart, options.seed)?;
    let validation = TextRows::in_order(validation, tokenizer.clone(), seq_len, apart)?;
    Ok(Dataset {
        train: Sampler::new(Rows::Text(train)),
        validation: Rows::Text(validation),
        tokenizer,
        description,
    })
}

/// Opens validation data that must not be the training data.
fn open_validation(train: &Path, val: &Path) -> Result<Corpus> {
    let same = |a: &Path, b: &Path| a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b));
    if same(train, val) {
        return Err(DataError::Spec {
            key: "data val",
            expected: "another path than the training data's; leave it out to keep part of that for validation",
            found: val.display().to_string(),
        });
    }
    Corpus::open(val)
}

fn make_tokenizer(
    spec: &TokenizerSpec,
    cache_dir: &Path,
    text: &[u8; 32],
    sample: impl FnOnce() -> Result<Vec<String>>,
) -> Result<Tokenizer> {
    let size = match spec {
        TokenizerSpec::Bytes => return Ok(Tokenizer::bytes()),
        TokenizerSpec::File(path) => return Tokenizer::load(path),
        TokenizerSpec::Bpe(size) => *size,
    };
    let key = files::sha256_parts(&[b"tokenizer v1", text, &(size as u64).to_le_bytes()]);
    let folder = cache_dir.join(format!("tokenizer-{}", files::hex(&key[..8])));
    if folder.join("tokenizer.json").exists() {
        match Tokenizer::load(&folder) {
            Ok(tokenizer) => return Ok(tokenizer),
            Err(error) => tracing::warn!("training the tokenizer again: {error}"),
        }
    }
    let sample = sample()?;
    let tokenizer = Tokenizer::train(size, sample.iter().map(String::as_str))?;
    if tokenizer.vocab_size() < size {
        tracing::warn!("the text has only enough repetition for {} of {size} tokens", tokenizer.vocab_size());
    }
    tokenizer.save(&folder)?;
    Ok(tokenizer)
}

fn open_or_write(
    cache_dir: &Path,
    corpus: &Corpus,
    documents: &[Document],
    tokenizer: &Tokenizer,
    text: &[u8; 32],
) -> Result<TokenFile> {
    let key = files::sha256_parts(&[tokenizer.hash(), text]);
    let path = cache_dir.join(format!("tokens-{}.bin", files::hex(&key[..8])));
    match TokenFile::open(&path, tokenizer, text) {
        Ok(file) => return Ok(file),
        Err(DataError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
        Err(error @ DataError::Cache { .. }) => tracing::warn!("tokenising again: {error}"),
        Err(error) => return Err(error),
    }
    cache::write(&path, corpus, documents, tokenizer, text)?;
    TokenFile::open(&path, tokenizer, text)
}
