//! `keyfold bench decode`.

use super::{print, shape::ShapeArgs, traffic::weight_bytes_per_token};
use crate::{commands::storage::StorageArgs, model_dir::ModelDir};
use anyhow::Context;
use keyfold_core::DType;
use keyfold_model::{Decoder, ModelConfig, weights::Weights};
use keyfold_ops::bandwidth;
use keyfold_tensor::Arena;
use serde::Serialize;
use std::{path::PathBuf, time::Instant};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    shape: ShapeArgs,
    /// Trained models to run instead.
    #[arg(long, value_name = "DIR")]
    model: Vec<PathBuf>,
    /// Tokens in the cache when decoding begins.
    #[arg(long, default_value_t = 128)]
    prompt: usize,
    /// Tokens to decode.
    #[arg(long, default_value_t = 128)]
    tokens: usize,
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
    params: usize,
    prompt_tokens: usize,
    new_tokens: usize,
    tokens_per_s: f64,
    ms_per_token: f64,
    prefill_ms: f64,
    cache_bytes_per_token: usize,
    /// Time to open the folder, if there is one, and to prepare decoding.
    load_ms: f64,
    weight_bytes_per_token: u64,
    /// Measured, of a buffer as large as what a token reads of the weights.
    read_gb_per_s: f64,
    /// Share of that bandwidth that reading the weights at this speed takes.
    bandwidth_share: f64,
    dtype: DType,
    kv_dtype: DType,
    threads: usize,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    anyhow::ensure!(
        args.prompt > 0 && args.tokens > 0 && args.repeats > 0,
        "--prompt, --tokens and --repeats: expected at least 1"
    );
    let positions = args.prompt.checked_add(args.tokens).context("--prompt and --tokens are too large")?;
    let mut rows = Vec::new();
    if args.model.is_empty() {
        let dtype = args.storage.dtype.unwrap_or(DType::F32);
        for config in args.shape.models(positions)? {
            let weights = Weights::allocate(&Arena::new(), config.declare()?, dtype, false);
            weights.initialise(0);
            rows.push(measure(args, &config, &weights, dtype)?);
        }
    }
    for path in &args.model {
        let start = Instant::now();
        let model = ModelDir::open(path, args.storage.dtype)?;
        let opened = start.elapsed();
        let row = measure(args, &model.config, &model.weights, model.dtype())?;
        rows.push(Row { load_ms: row.load_ms + 1e3 * opened.as_secs_f64(), ..row });
    }
    print(&rows, args.json, |row| {
        format!(
            "{:7} {:.0} tok/s ({:.3} ms a token, {:.0} % of {:.1} GB/s), {} tokens after {} ({:.1} ms), cache {} B per token",
            row.attention,
            row.tokens_per_s,
            row.ms_per_token,
            100.0 * row.bandwidth_share,
            row.read_gb_per_s,
            row.new_tokens,
            row.prompt_tokens,
            row.prefill_ms,
            row.cache_bytes_per_token
        )
    })
}

fn measure(args: &Args, config: &ModelConfig, weights: &Weights, dtype: DType) -> anyhow::Result<Row> {
    let start = Instant::now();
    let decoder = Decoder::new(config, weights)?;
    let prepared = start.elapsed();
    let vocab = config.vocab_size as u32;
    let prompt: Vec<u32> = (0..args.prompt as u32).map(|i| i % vocab).collect();
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    let mut bytes = 0;
    for _ in 0..args.repeats {
        let mut cache = decoder.cache(args.prompt + args.tokens, args.storage.kv_dtype)?;
        let start = Instant::now();
        let mut logits = decoder.step(&prompt, &mut cache);
        prefill.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        for _ in 0..args.tokens {
            logits = decoder.step(&[likeliest(&logits.to_vec())], &mut cache);
        }
        decode.push(start.elapsed().as_secs_f64() / args.tokens as f64);
        bytes = cache.bytes_per_token();
    }
    let [prefill, decode] = [prefill, decode].map(|mut values| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    });
    let weight_bytes = weight_bytes_per_token(config, weights);
    let fastest = bandwidth::read(weight_bytes);
    Ok(Row {
        attention: config.attention.kind(),
        params: weights.count(),
        prompt_tokens: args.prompt,
        new_tokens: args.tokens,
        tokens_per_s: 1.0 / decode,
        ms_per_token: 1e3 * decode,
        prefill_ms: 1e3 * prefill,
        cache_bytes_per_token: bytes,
        load_ms: 1e3 * prepared.as_secs_f64(),
        weight_bytes_per_token: weight_bytes,
        read_gb_per_s: fastest / 1e9,
        bandwidth_share: weight_bytes as f64 / decode / fastest,
        dtype,
        kv_dtype: args.storage.kv_dtype,
        threads: rayon::current_num_threads(),
    })
}

fn likeliest(logits: &[f32]) -> u32 {
    logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(token, _)| token as u32)
}
