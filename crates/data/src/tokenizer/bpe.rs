//! The side of the tokenizer that talks to the Hugging Face library.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer as Library};

use super::alphabet::Alphabet;
use super::table::ByteTable;
use super::{Bpe, Kind, Tokenizer, check_vocab_size};
use crate::{DataError, END_OF_TEXT, Result};

pub(super) fn train<'a>(
    vocab_size: usize,
    pieces: impl Iterator<Item = &'a str> + Send,
) -> Result<Tokenizer> {
    check_vocab_size(vocab_size)?;
    let failed =
        |e: tokenizers::Error| DataError::TokenizerLibrary { action: "train", reason: e.to_string() };
    let mut library = Library::new(BPE::default());
    library.with_pre_tokenizer(Some(ByteLevel::new(false, false, true)));
    library.with_decoder(Some(ByteLevel::new(false, false, true)));
    let trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .initial_alphabet((0..=255).map(super::table::byte_to_char).collect())
        .build();
    library.train(&mut TrainerWrapper::from(trainer), pieces).map_err(failed)?;
    from_library(library, None).map_err(|reason| DataError::TokenizerLibrary { action: "train", reason })
}

impl Bpe {
    fn new(mut data: Library) -> Self {
        let _ = data.with_truncation(None);
        data.with_padding(None);
        // Text is data: a document that spells out a special token must not be able to make one.
        data.set_encode_special_tokens(true);
        Self { data, markup: OnceLock::new() }
    }

    /// What the tokenizer does, as one text; writing a large one takes as long as reading it.
    pub(super) fn text(&self) -> tokenizers::Result<String> {
        self.data.to_string(false)
    }

    /// `around`: with the tokens that the post-processor adds.
    pub(super) fn encode(&self, text: &str, around: bool) -> Result<Vec<u32>> {
        encode(&self.data, text, around)
    }

    /// Special tokens in the text are special tokens.
    pub(super) fn encode_markup(&self, text: &str) -> Result<Vec<u32>> {
        let library = self.markup.get_or_init(|| {
            let mut library = Box::new(self.data.clone());
            library.set_encode_special_tokens(false);
            library
        });
        encode(library, text, false)
    }
}

fn encode(library: &Library, text: &str, around: bool) -> Result<Vec<u32>> {
    let failed = |reason: String| DataError::TokenizerLibrary { action: "encode", reason };
    // As when a file is read: an assertion in the library is that file's fault.
    let run =
        AssertUnwindSafe(|| library.encode_fast(text, around).map(|encoding| encoding.get_ids().to_vec()));
    let ids = catch_unwind(run).map_err(|_| failed("the tokenizer is inconsistent".to_owned()))?;
    ids.map_err(|e| failed(e.to_string()))
}

/// Reads everything from the library's tokenizer that the crate needs to know. `eos` names the
/// end-of-document token; without it the usual names are tried.
pub(super) fn from_library(library: Library, eos: Option<&str>) -> std::result::Result<Tokenizer, String> {
    let alphabet = Alphabet::of(&library)?;
    let library = Bpe::new(library);

    let added = library.data.get_added_tokens_decoder();
    let vocab = library.data.get_vocab(true);
    let size = vocab.values().map(|&id| id as usize + 1).max().unwrap_or(0);
    if size > super::spec::MAX_VOCAB {
        return Err(format!("expected ids below {}, found {}", super::spec::MAX_VOCAB, size - 1));
    }
    let mut tokens: Vec<Option<Vec<u8>>> = vec![None; size];
    let mut specials = Vec::new();
    for (content, &id) in &vocab {
        let bytes = match added.get(&id) {
            Some(token) if token.special => {
                specials.push((content.clone(), id));
                Vec::new()
            }
            Some(token) => token.content.clone().into_bytes(),
            None => alphabet.bytes(content)?,
        };
        tokens[id as usize] = Some(bytes);
    }
    let mut table = ByteTable::default();
    for token in &tokens {
        table.push(token.as_deref().unwrap_or_default());
    }
    specials.retain(|(content, _)| !content.is_empty());
    specials.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.0.cmp(&b.0)));

    const USUAL: [&str; 6] =
        [END_OF_TEXT, "<|end_of_text|>", "</s>", "<｜end▁of▁sentence｜>", "<eos>", "<|im_end|>"];
    let named: Vec<&str> = eos.into_iter().collect();
    let tried: &[&str] = if eos.is_some() { &named } else { &USUAL };
    let eos = tried
        .iter()
        .find_map(|name| vocab.get(*name).copied())
        .ok_or_else(|| format!("expected an end-of-document token, one of {tried:?}, found none"))?;

    let bytes = Tokenizer::bytes();
    if table == bytes.table && eos == bytes.eos {
        return Ok(bytes);
    }
    let leading_space = alphabet.leading_space();
    let hash = OnceLock::new();
    Ok(Tokenizer { kind: Kind::Bpe(Box::new(library)), table, specials, eos, hash, leading_space })
}
