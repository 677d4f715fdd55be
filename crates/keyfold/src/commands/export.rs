//! `keyfold export`: a model folder in the form that other software reads.

use super::print_line;
use crate::model_dir::{ModelDir, generation};
use anyhow::Context;
use keyfold_core::DType;
use keyfold_data::Tokenizer;
use keyfold_model::{checkpoint, families::Form};
use keyfold_train::atomic::create_folder_atomic;
use serde_json::{Map, Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A model folder, or the folder of a run.
    model: PathBuf,
    /// The folder to write; it must not exist.
    out: PathBuf,
    /// hf: a class of transformers (Llama, Mistral, Qwen, Gemma, DeepSeek); step3: Step-3's text model; keyfold: the
    /// project's own form, which expresses every model.
    #[arg(long, value_name = "FORM")]
    format: Form,
    /// Storage of matrices in the file [default: as the model has them].
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<DType>,
}

/// What is copied from the folder as it is.
const COPIED: [&str; 10] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    generation::FILE,
    "LICENSE",
];
/// Keys of config.json that are about tokens, which no family describes.
const TOKENS: [&str; 3] = ["bos_token_id", "eos_token_id", "pad_token_id"];

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let model = ModelDir::open(&args.model, None)?;
    let form = args.format;
    let family = form.family(&model.config).map_err(|reason| {
        anyhow::anyhow!("--format {form} cannot express this model: {reason}. --format keyfold can")
    })?;
    let dtype = args.dtype.unwrap_or_else(|| model.dtype());
    let tokenizer = match model.path.join("tokenizer.json").exists() {
        true => Some(model.tokenizer()?),
        false => None,
    };
    let tokens = token_keys(&model.path, tokenizer.as_ref())?;
    create_folder_atomic(&args.out, |dir| -> anyhow::Result<()> {
        let mut json = family.config_json(&model.config, dtype);
        if let Some(keys) = json.as_object_mut().filter(|_| form != Form::Keyfold) {
            keys.extend(tokens.clone());
        }
        checkpoint::write_json(dir, &json)?;
        checkpoint::write_weights_as(dir, family, &model.weights, dtype)?;
        for name in COPIED {
            copy(&model.path.join(name), &dir.join(name))?;
        }
        let generation = dir.join(generation::FILE);
        if let (Some(tokenizer), false) = (&tokenizer, generation.exists()) {
            let mut keys = tokens.clone();
            keys.insert("eos_token_id".into(), json!(model.defaults(tokenizer)?.ends));
            let text = serde_json::to_string_pretty(&keys)? + "\n";
            fs::write(&generation, text).with_context(|| generation.display().to_string())?;
        }
        Ok(())
    })?;
    print_line(format_args!("{}: {} in {dtype}", args.out.display(), family.architecture))
}

/// Ids of special tokens, from the model's config.json or its tokenizer. Classes of other software assume ids of their own
/// where a file says nothing.
fn token_keys(dir: &Path, tokenizer: Option<&Tokenizer>) -> anyhow::Result<Map<String, Value>> {
    let path = dir.join(checkpoint::CONFIG_FILE);
    let text = fs::read(&path).with_context(|| path.display().to_string())?;
    let config: Value = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    let stored = |key: &str| config.get(key).or_else(|| config.get("text_config")?.get(key)).cloned();
    let mut keys: Map<String, Value> =
        TOKENS.iter().map(|key| ((*key).to_owned(), stored(key).unwrap_or(Value::Null))).collect();
    if let Some(tokenizer) = tokenizer {
        if keys["eos_token_id"].is_null() {
            keys.insert("eos_token_id".into(), tokenizer.eos().into());
        }
        if keys["bos_token_id"].is_null() {
            keys.insert("bos_token_id".into(), tokenizer.sequence_prefix()?.first().copied().into());
        }
    }
    Ok(keys)
}

/// Copies a file, if it is there.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    match fs::copy(from, to) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        copied => copied.map(drop).with_context(|| format!("{} to {}", from.display(), to.display())),
    }
}
