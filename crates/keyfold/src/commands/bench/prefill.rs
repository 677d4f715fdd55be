//! `keyfold bench prefill`.

use super::print;
use crate::{commands::storage::StorageArgs, model_dir::ModelDir};
use keyfold_core::DType;
use keyfold_model::Decoder;
use keyfold_tensor::Device;
use serde::Serialize;
use std::{path::PathBuf, time::Instant};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Models to run.
    #[arg(long, value_name = "DIR", required = true)]
    model: Vec<PathBuf>,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 512)]
    prompt: usize,
    /// Repetitions to take the median of.
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    #[command(flatten)]
    storage: StorageArgs,
    /// Print a JSON array.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    attention: &'static str,
    device: String,
    params: usize,
    prompt_tokens: usize,
    tokens_per_s: f64,
    ms: f64,
    load_ms: f64,
    dtype: DType,
    kv_dtype: DType,
    threads: usize,
}

pub(crate) fn run(args: &Args, device: Device) -> anyhow::Result<()> {
    anyhow::ensure!(args.prompt > 0 && args.repeats > 0, "--prompt and --repeats: expected at least 1");
    let mut rows = Vec::new();
    for path in &args.model {
        let start = Instant::now();
        let model = ModelDir::open_on(path, args.storage.dtype, device)?;
        let decoder = Decoder::new(&model.config, &model.weights)?;
        let load_ms = 1e3 * start.elapsed().as_secs_f64();
        let seconds = measure(args, &decoder)?;
        rows.push(Row {
            attention: model.config.attention.kind(),
            device: device.describe(),
            params: model.weights.count(),
            prompt_tokens: args.prompt,
            tokens_per_s: args.prompt as f64 / seconds,
            ms: 1e3 * seconds,
            load_ms,
            dtype: model.dtype(),
            kv_dtype: args.storage.kv_dtype(device),
            threads: rayon::current_num_threads(),
        });
    }
    print(&rows, args.json, |row| {
        format!(
            "{:7} {:.0} tok/s, {} tokens in {:.1} ms; loaded in {:.0} ms",
            row.attention, row.tokens_per_s, row.prompt_tokens, row.ms, row.load_ms
        )
    })
}

/// Seconds for the prompt: the median.
fn measure(args: &Args, decoder: &Decoder) -> anyhow::Result<f64> {
    let vocab = decoder.config().vocab_size as u32;
    let prompt: Vec<u32> = (0..args.prompt as u32).map(|i| i % vocab).collect();
    let mut cache = decoder.cache(args.prompt, args.storage.kv_dtype(decoder.device()))?;
    let mut times = Vec::new();
    for _ in 0..args.repeats {
        cache.truncate(0);
        let start = Instant::now();
        for chunk in prompt.chunks(decoder.chunk_tokens()) {
            decoder.step(chunk, &mut cache);
        }
        decoder.device().synchronize();
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}
