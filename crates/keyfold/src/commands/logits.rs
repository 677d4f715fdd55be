//! `keyfold logits`: logits of given tokens, for checking a model against other software.

use crate::model_dir::ModelDir;
use anyhow::Context;
use keyfold_core::DType;
use keyfold_model::{LanguageModel, Sequences};
use keyfold_tensor::Arena;
use safetensors::{Dtype, tensor::TensorView};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A model folder, or the folder of a run.
    model: PathBuf,
    /// A JSON array of token ids.
    #[arg(long, value_name = "FILE")]
    tokens: PathBuf,
    /// The safetensors file to write: tensor `logits` [tokens, vocab], f32.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Storage of the weights in memory; without it, as the file has them, used in place.
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<DType>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let name = args.tokens.display();
    let text = std::fs::read_to_string(&args.tokens).with_context(|| name.to_string())?;
    let ids: Vec<u32> =
        serde_json::from_str(&text).with_context(|| format!("{name}: expected a JSON array of token ids"))?;
    let ModelDir { config, weights, .. } = ModelDir::open(&args.model, args.dtype)?;
    let longest = config.max_position_embeddings;
    anyhow::ensure!(
        (1..=longest).contains(&ids.len()),
        "{name}: {} tokens: expected 1 to the model's longest sequence, {longest}",
        ids.len()
    );
    if let Some((place, id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= config.vocab_size) {
        anyhow::bail!(
            "{name}: token {place} is {id}: expected an id below vocab_size = {}",
            config.vocab_size
        );
    }
    let model = LanguageModel::with_weights(&config, weights, &Arena::new())?;
    let logits = model.logits(&ids, &Sequences::new(1, ids.len()));
    let bytes: Vec<u8> = logits.to_vec().iter().flat_map(|x| x.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![ids.len(), config.vocab_size], &bytes)?;
    safetensors::serialize_to_file([("logits", view)], None, &args.out)
        .with_context(|| args.out.display().to_string())
}
