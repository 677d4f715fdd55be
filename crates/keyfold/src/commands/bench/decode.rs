//! `keyfold bench decode`.

use super::{
    ceilings::{Ceilings, SECONDS, draw},
    print,
    shape::ShapeArgs,
    traffic::weight_bytes_per_token,
};
use crate::{commands::storage::StorageArgs, model_dir::ModelDir};
use anyhow::Context;
use keyfold_core::{DType, SCALE_BLOCK};
use keyfold_model::{Chunk, Decoder, ModelConfig, PagedCache, weights::Weights};
use keyfold_ops::{
    bandwidth,
    sample::{self, Choice, Rng, Sampler},
};
use keyfold_tensor::{Arena, Device};
use serde::Serialize;
use std::{path::PathBuf, time::Instant};

/// Tokens of a page on a GPU; pages lie in random order. On the host a sequence is one page.
const DEVICE_PAGE: usize = 64;
/// Steps before those that are measured: a GPU records them.
const FIRST_STEPS: usize = 3;
/// Sequences at most, where the memory alone would decide.
const MOST_SEQUENCES: usize = 4096;
/// Memory of a GPU that is not for the cache, and of each sequence's part of a step.
const KEPT_FREE: [u64; 2] = [3 << 29, 2 << 20];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    shape: ShapeArgs,
    /// Trained models to run instead.
    #[arg(long, value_name = "DIR")]
    model: Vec<PathBuf>,
    /// Sequences at a time; 0: as many as the device's memory holds, 4,096 at most.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Tokens of each sequence in the cache when decoding begins.
    #[arg(long, visible_alias = "context", default_value_t = 128)]
    prompt: usize,
    /// Put random rows into the cache instead of computing a prompt's, on a GPU.
    #[arg(long)]
    skip_prompt: bool,
    /// Tokens to decode.
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// Repetitions to take the median of.
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// Draw tokens at this temperature; 0 takes the likeliest.
    #[arg(long, default_value_t = 0.0, value_name = "T")]
    temperature: f32,
    /// Draw from this many of the likeliest tokens.
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Draw from the smallest set of likeliest tokens with this probability.
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    top_p: f32,
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
    batch: usize,
    prompt_tokens: usize,
    new_tokens: usize,
    tokens_per_s: f64,
    /// Of a step, in which every sequence gets a token.
    ms_per_token: f64,
    prefill_ms: Option<f64>,
    cache_bytes_per_token: usize,
    /// Time to open the folder, if there is one, and to prepare decoding.
    load_ms: f64,
    weight_bytes_per_token: u64,
    /// Of the cache, which a step reads.
    cache_bytes: u64,
    /// What memory gives at best. On the host reading, of a buffer as large as what a token reads of the weights; on a GPU a
    /// copy, reading and writing together.
    read_gb_per_s: f64,
    /// Share of that bandwidth that reading the weights (on a GPU: and the cache) at this speed takes.
    bandwidth_share: f64,
    /// A square product of bf16 matrices, on a GPU.
    matmul_tflop_per_s: Option<f64>,
    dtype: DType,
    kv_dtype: DType,
    threads: usize,
}

pub(crate) fn run(args: &Args, device: Device) -> anyhow::Result<()> {
    anyhow::ensure!(
        args.prompt > 0 && args.tokens > 0 && args.repeats > 0,
        "--prompt, --tokens and --repeats: expected at least 1"
    );
    anyhow::ensure!(
        device != Device::Cpu || (args.batch > 0 && !args.skip_prompt),
        "--batch 0 and --skip-prompt: expected a GPU, with --device cuda"
    );
    let positions = args.prompt.checked_add(args.tokens).and_then(|tokens| tokens.checked_add(FIRST_STEPS));
    let positions = positions.context("--prompt and --tokens are too large")?;
    let bench = Bench::new(args, device, positions)?;
    let mut rows = Vec::new();
    if args.model.is_empty() {
        for config in args.shape.models(positions)? {
            let weights = bench.weights(&config)?;
            rows.push(bench.measure(&config, &weights, 0.0)?);
        }
    }
    for path in &args.model {
        let start = Instant::now();
        let model = ModelDir::open_on(path, args.storage.dtype, device)?;
        let opened = 1e3 * start.elapsed().as_secs_f64();
        rows.push(Row { dtype: model.dtype(), ..bench.measure(&model.config, &model.weights, opened)? });
    }
    print(&rows, args.json, |row| {
        format!(
            "{:7} {:.0} tok/s ({} x {} tokens, {:.3} ms a step, {:.0} % of {:.1} GB/s), cache {} B per token",
            row.attention,
            row.tokens_per_s,
            row.batch,
            row.prompt_tokens,
            row.ms_per_token,
            100.0 * row.bandwidth_share,
            row.read_gb_per_s,
            row.cache_bytes_per_token
        )
    })
}

struct Bench<'a> {
    args: &'a Args,
    device: Device,
    /// Tokens of a sequence at the end.
    positions: usize,
    /// With what they were found to be, on a GPU: bytes and operations a second.
    ceilings: Option<(Ceilings, [f64; 2])>,
}

impl<'a> Bench<'a> {
    fn new(args: &'a Args, device: Device, positions: usize) -> anyhow::Result<Self> {
        let ceilings = match device {
            Device::Cpu => None,
            Device::Cuda(_) => {
                let ceilings = Ceilings::new(device, SECONDS)?;
                let found = [ceilings.copy(), ceilings.matmul()];
                ceilings.arena().trim();
                Some((ceilings, found))
            }
        };
        Ok(Self { args, device, positions, ceilings })
    }

    /// Storage of weights that no file has.
    fn dtype(&self) -> DType {
        self.args.storage.dtype.unwrap_or(if self.ceilings.is_some() { DType::Bf16 } else { DType::F32 })
    }

    fn weights(&self, config: &ModelConfig) -> anyhow::Result<Weights> {
        let weights = Weights::allocate(&Arena::on(self.device)?, config.declare()?, self.dtype(), false);
        match &self.ceilings {
            None => weights.initialise(0),
            Some((ceilings, _)) => {
                // Of the size that trained ones have; drawing each would take longer than the measurement.
                ceilings.fill(&weights.matrices.value, (config.hidden_size as f32).powf(-0.5));
                weights.vectors.value.clone().write(&vec![1.0; weights.vectors.value.len()]);
            }
        }
        Ok(weights)
    }

    /// Sequences that a cache of `bytes` per token has room for.
    fn batch(&self, bytes_per_token: usize) -> anyhow::Result<usize> {
        if self.args.batch > 0 {
            return Ok(self.args.batch);
        }
        let tokens = self.needed_pages() * DEVICE_PAGE;
        let free =
            self.device.available_memory().context("--batch 0: the device does not tell its free memory")?;
        let fitting = free.saturating_sub(KEPT_FREE[0]) / ((tokens * bytes_per_token) as u64 + KEPT_FREE[1]);
        anyhow::ensure!(
            fitting > 0,
            "--prompt {}: not one sequence fits the device's memory",
            self.args.prompt
        );
        Ok((fitting as usize).min(MOST_SEQUENCES))
    }

    fn needed_pages(&self) -> usize {
        self.positions.div_ceil(DEVICE_PAGE)
    }

    fn measure(&self, config: &ModelConfig, weights: &Weights, opened: f64) -> anyhow::Result<Row> {
        let Args { prompt, tokens, repeats, storage, .. } = self.args;
        let longest = config.max_position_embeddings;
        anyhow::ensure!(
            self.positions <= longest,
            "--prompt {prompt} and --tokens {tokens}, with {FIRST_STEPS} more that are not measured: expected at most \
             max_position_embeddings = {longest}"
        );
        let start = Instant::now();
        let decoder = Decoder::new(config, weights)?;
        let load_ms = opened + 1e3 * start.elapsed().as_secs_f64();
        let kv_dtype = storage.kv_dtype(self.device);
        let bytes_per_token = PagedCache::bytes_of_a_token(config, kv_dtype, self.device)?;
        let batch = self.batch(bytes_per_token)?;
        let (page_size, needed) = match self.device {
            Device::Cpu => (self.positions, 1),
            Device::Cuda(_) => (DEVICE_PAGE, self.needed_pages()),
        };
        let pages = batch.checked_mul(needed).filter(|pages| *pages <= u32::MAX as usize);
        let pages = pages.with_context(|| format!("--batch {batch}: too many pages"))?;
        let mut cache = decoder.paged_cache(pages, page_size, kv_dtype)?;
        let pages = dealt(pages);
        let pages: Vec<&[u32]> = pages.chunks(needed).collect();
        let mut prefill = Vec::new();
        let mut first = vec![0; batch];
        match &self.ceilings {
            Some((ceilings, _)) if self.args.skip_prompt => {
                let elements = cache.layout().elements_per_token();
                cache.layers().for_each(|layer| match kv_dtype {
                    // One scale a row, which suits heads of all widths.
                    DType::Fp8 => ceilings.fill_rows(layer, elements, elements.next_multiple_of(SCALE_BLOCK)),
                    _ => ceilings.fill(layer, 1.0),
                });
            }
            _ => {
                for repeat in 0..*repeats {
                    let start = Instant::now();
                    for (pages, first) in pages.iter().zip(&mut first) {
                        *first = self.prefill(&decoder, pages, &mut cache);
                    }
                    prefill.push(start.elapsed().as_secs_f64());
                    if batch > 1 && repeat == 0 {
                        break;
                    }
                }
            }
        }
        let mut decode = Vec::new();
        for _ in 0..*repeats {
            let chunks: Vec<Chunk<'_>> = first
                .iter()
                .zip(&pages)
                .map(|(token, pages)| Chunk {
                    tokens: std::slice::from_ref(token),
                    past: *prompt,
                    pages,
                    logits: 1,
                })
                .collect();
            let mut decoding = decoder.decode(&chunks, self.choices(batch), &mut cache)?;
            (0..FIRST_STEPS).for_each(|_| decoding.step());
            self.device.synchronize();
            let start = Instant::now();
            (0..*tokens).for_each(|_| decoding.step());
            self.device.synchronize();
            decode.push(start.elapsed().as_secs_f64() / *tokens as f64);
        }
        let decode = median(decode);
        let weight_bytes = weight_bytes_per_token(config, weights);
        let cache_bytes = (batch * (prompt + tokens / 2) * bytes_per_token) as u64;
        let (fastest, read) = match &self.ceilings {
            None => (bandwidth::read(weight_bytes), weight_bytes),
            Some((_, [copy, _])) => (*copy, weight_bytes + cache_bytes),
        };
        Ok(Row {
            attention: config.attention.kind(),
            device: self.device.describe(),
            params: weights.count(),
            batch,
            prompt_tokens: *prompt,
            new_tokens: *tokens,
            tokens_per_s: batch as f64 / decode,
            ms_per_token: 1e3 * decode,
            prefill_ms: (!prefill.is_empty()).then(|| 1e3 * median(prefill)),
            cache_bytes_per_token: bytes_per_token,
            load_ms,
            weight_bytes_per_token: weight_bytes,
            cache_bytes,
            read_gb_per_s: fastest / 1e9,
            bandwidth_share: read as f64 / decode / fastest,
            matmul_tflop_per_s: self.ceilings.as_ref().map(|(_, [_, matmul])| matmul / 1e12),
            dtype: self.dtype(),
            kv_dtype,
            threads: rayon::current_num_threads(),
        })
    }

    /// How the sequences' tokens are chosen.
    fn choices(&self, batch: usize) -> Vec<Choice> {
        let Args { temperature, top_k, top_p, .. } = *self.args;
        let sampler = Sampler { temperature, top_k, top_p, min_p: 0.0 };
        let choice = |seed| Choice { sampler, rng: Rng::new(seed), ..Choice::greedy() };
        (0..batch as u64).map(choice).collect()
    }

    /// Computes a prompt into `pages`; the token that follows it.
    fn prefill(&self, decoder: &Decoder, pages: &[u32], cache: &mut PagedCache) -> u32 {
        let vocab = decoder.config().vocab_size as u32;
        let prompt: Vec<u32> = (0..self.args.prompt as u32).map(|i| i % vocab).collect();
        let (mut past, mut next) = (0, 0);
        for tokens in prompt.chunks(decoder.chunk_tokens()) {
            let logits = decoder.forward(&[Chunk { tokens, past, pages, logits: 1 }], cache);
            past += tokens.len();
            if past == prompt.len() {
                next = sample::likeliest_rows(&logits)[0];
            }
        }
        next
    }
}

/// Pages in random order, the same every time.
fn dealt(count: usize) -> Vec<u32> {
    let mut pages: Vec<u32> = (0..count as u32).collect();
    let mut state = 7;
    for last in (1..pages.len()).rev() {
        pages.swap(last, draw(&mut state) as usize % (last + 1));
    }
    pages
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
