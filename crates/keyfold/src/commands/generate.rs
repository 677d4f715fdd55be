//! `keyfold generate`: text from a trained model, as it is made.

use super::{sampling::SamplingArgs, storage::StorageArgs};
use crate::model_dir::ModelDir;
use anyhow::Context;
use keyfold_core::units;
use keyfold_data::StreamDecoder;
use keyfold_model::{Decoder, Request, Stop, generate};
use keyfold_ops::sample::Rng;
use keyfold_tensor::Device;
use std::{io::Write, path::PathBuf};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A model folder, or the folder of a run.
    model: PathBuf,
    /// Text to go on from; the start of a document without it.
    #[arg(long, default_value = "")]
    prompt: String,
    /// Tokens to make at most.
    #[arg(long, default_value_t = 200, value_name = "N")]
    max_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    storage: StorageArgs,
}

pub(crate) fn run(args: &Args, device: Device) -> anyhow::Result<()> {
    args.sampling.validate()?;
    let model = ModelDir::open_on(&args.model, args.storage.dtype, device)?;
    let tokenizer = model.tokenizer()?;
    let defaults = model.defaults(&tokenizer)?;
    let sampler = args.sampling.sampler(&defaults)?;
    let mut prompt = tokenizer.encode_sequence(&args.prompt)?;
    if prompt.is_empty() {
        prompt.push(tokenizer.eos());
    }
    model.check_ids(&prompt)?;
    let longest = model.config.max_position_embeddings;
    anyhow::ensure!(
        prompt.len() < longest,
        "--prompt has {} tokens: expected fewer than the model's longest sequence, {longest}",
        prompt.len()
    );
    let decoder = Decoder::new(&model.config, &model.weights)?;
    let capacity = prompt.len().saturating_add(args.max_tokens).min(longest);
    let mut cache = decoder.cache(capacity, args.storage.kv_dtype(device))?;
    let mut out = std::io::stdout().lock();
    write!(out, "{}", args.prompt).context("standard output")?;
    let mut text = StreamDecoder::new();
    let mut failed = None;
    let mut rng = Rng::new(args.sampling.seed);
    let request = Request {
        prompt: &prompt,
        max_tokens: args.max_tokens,
        ends: &defaults.ends,
        sampler,
        repetition_penalty: args.sampling.repetition_penalty(&defaults)?,
        history: &[],
        interrupt: None,
    };
    let done = generate(&decoder, &mut cache, &request, &mut rng, |token| {
        let piece = text.push(&tokenizer, token);
        failed = write!(out, "{piece}").and_then(|()| out.flush()).err();
        failed.is_none()
    })?;
    failed.map_or(Ok(()), Err).context("standard output")?;
    writeln!(out, "{}", text.finish()).context("standard output")?;
    let why = match done.stop {
        Stop::EndOfDocument => "end of document",
        Stop::MaxTokens => "--max-tokens",
        Stop::Capacity => "the model's longest sequence",
        Stop::Cancelled => "cancelled",
    };
    let ready = match device {
        Device::Cpu => String::new(),
        Device::Cuda(_) => format!(", step recorded in {:.0} ms", 1e3 * done.ready.as_secs_f64()),
    };
    eprintln!(
        "\n{} tokens ({why}), {:.0} tok/s, prompt of {} in {:.0} ms{ready}; cache: {} B per token, {} for {} tokens",
        done.tokens.len(),
        done.tokens_per_second(),
        prompt.len(),
        1e3 * done.prefill.as_secs_f64(),
        units::grouped(cache.bytes_per_token() as u64),
        units::bytes((cache.bytes_per_token() * cache.len()) as u64),
        cache.len()
    );
    Ok(())
}
