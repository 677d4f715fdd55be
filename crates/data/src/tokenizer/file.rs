//! tokenizer.json and tokenizer_config.json.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::table::byte_to_char;
use super::{Kind, Tokenizer, bpe};
use crate::{DataError, END_OF_TEXT, Result, files};

/// Greatest tokenizer.json that is read; those of the largest public models have some 30 MB.
const MAX_FILE: u64 = 256 << 20;

pub(super) fn load(path: &Path) -> Result<Tokenizer> {
    let path = if path.is_dir() { path.join("tokenizer.json") } else { path.to_path_buf() };
    let wrong = |reason: String| DataError::Tokenizer { path: path.clone(), reason };
    let size = std::fs::metadata(&path).map_err(DataError::io(&path, "read"))?.len();
    if size > MAX_FILE {
        return Err(wrong(format!("expected at most {MAX_FILE} bytes, found {size}")));
    }
    let content = std::fs::read(&path).map_err(DataError::io(&path, "read"))?;
    let eos = super::config::token(&path.with_file_name(super::config::FILE), "eos_token")?;
    // The library is written for files that its own tools made; a broken one may trip an assertion in
    // it, which must not end a server or a training run.
    let read = std::panic::AssertUnwindSafe(|| {
        let library = tokenizers::Tokenizer::from_bytes(&content).map_err(|e| e.to_string())?;
        let tokenizer = bpe::from_library(library, eos.as_deref())?;
        // What is put around a text may name tokens that the file has not, which shows only now.
        let ids = tokenizer.encode_sequence("a").map_err(|e| e.to_string())?;
        match ids.iter().find(|id| **id as usize >= tokenizer.vocab_size()) {
            None => Ok(tokenizer),
            Some(id) => Err(format!(
                "post_processor puts the token {id} beside a text: expected ids below {}",
                tokenizer.vocab_size()
            )),
        }
    });
    std::panic::catch_unwind(read).map_err(|_| wrong("the file is inconsistent".to_string()))?.map_err(wrong)
}

pub(super) fn save(tokenizer: &Tokenizer, folder: &Path) -> Result<()> {
    let path: PathBuf = folder.join("tokenizer.json");
    let text = match &tokenizer.kind {
        Kind::Bytes => pretty(&bytes_json(), &path)?,
        Kind::Bpe(bpe) => {
            let mut library = bpe.data.clone();
            library.set_encode_special_tokens(false);
            library
                .to_string(true)
                .map_err(|e| DataError::TokenizerLibrary { action: "save", reason: e.to_string() })?
        }
    };
    files::write_text(&path, &text)?;

    let eos = tokenizer.specials.iter().find(|(_, id)| *id == tokenizer.eos).map(|(c, _)| c.as_str());
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": eos.unwrap_or(END_OF_TEXT),
        "add_prefix_space": false,
        "clean_up_tokenization_spaces": false,
        "model_max_length": 1_000_000_000_000_000_u64,
    });
    let path = folder.join("tokenizer_config.json");
    files::write_text(&path, &pretty(&config, &path)?)
}

fn pretty(value: &Value, path: &Path) -> Result<String> {
    serde_json::to_string_pretty(value)
        .map_err(|e| DataError::Tokenizer { path: path.to_path_buf(), reason: e.to_string() })
}

/// The raw byte tokenizer as a byte-level BPE without merges, so that other programs read it.
fn bytes_json() -> Value {
    let mut vocab = serde_json::Map::new();
    for byte in 0..=255u8 {
        vocab.insert(byte_to_char(byte).to_string(), json!(byte));
    }
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true,
    });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [{
            "id": 256, "content": END_OF_TEXT, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }],
        "normalizer": null,
        "pre_tokenizer": byte_level.clone(),
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": [],
        },
    })
}
