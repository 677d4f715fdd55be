//! `keyfold perplexity`: how well a model predicts a text.

use super::print_line;
use crate::model_dir::ModelDir;
use anyhow::Context;
use indicatif::ProgressBar;
use keyfold_core::{DType, units};
use keyfold_eval::{Windows, score};
use keyfold_model::LanguageModel;
use keyfold_tensor::Arena;
use serde::Serialize;
use std::{path::PathBuf, time::Instant};

/// Tokens of a window where nothing else is said.
const CONTEXT: usize = 512;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A model folder, or the folder of a run.
    model: PathBuf,
    /// A text file; it is tokenized whole, and special tokens that it spells out are text.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Tokens of a window [default: 512, or the model's longest sequence].
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Tokens between the beginnings of windows; every token is then scored, by the first window that holds it. Without it
    /// windows follow one another and the second half of each is scored.
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Use the first N characters of the text.
    #[arg(long, value_name = "N")]
    limit_chars: Option<usize>,
    /// Use the first N windows.
    #[arg(long, value_name = "N")]
    chunks: Option<usize>,
    /// Leave out what the tokenizer puts before a text, such as a begin-of-sequence token; otherwise every window has it.
    #[arg(long)]
    no_prefix: bool,
    /// Take special tokens that the text spells out for what they spell, as `transformers` does.
    #[arg(long)]
    special_tokens: bool,
    /// Storage of the weights in memory [default: as the file has them, used in place].
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<DType>,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    perplexity: f64,
    bits_per_byte: f64,
    nats: f64,
    tokens: u64,
    bytes: u64,
    chunks: usize,
    context: usize,
    stride: Option<usize>,
    prefix_tokens: usize,
    text_tokens: usize,
    dtype: DType,
    seconds: f64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let name = args.data.display();
    let text = std::fs::read_to_string(&args.data).with_context(|| name.to_string())?;
    let end = args.limit_chars.and_then(|limit| text.char_indices().nth(limit));
    let text = &text[..end.map_or(text.len(), |(end, _)| end)];
    let dir = ModelDir::open(&args.model, args.dtype)?;
    let longest = dir.config.max_position_embeddings;
    let context = args.context.unwrap_or(CONTEXT.min(longest));
    anyhow::ensure!(
        context <= longest,
        "--context is {context}: expected at most the model's longest sequence, {longest}"
    );
    let tokenizer = dir.tokenizer()?;
    let ids =
        if args.special_tokens { tokenizer.encode_with_specials(text)? } else { tokenizer.encode(text)? };
    let prefix = if args.no_prefix { Vec::new() } else { tokenizer.sequence_prefix()? };
    dir.check_ids(&ids)?;
    dir.check_ids(&prefix)?;
    let windows = Windows { context, stride: args.stride, prefix: prefix.len() };
    let mut windows = windows.over(ids.len()).with_context(|| name.to_string())?;
    windows.truncate(args.chunks.unwrap_or(usize::MAX));
    anyhow::ensure!(!windows.is_empty(), "--chunks is 0: expected at least 1");

    let dtype = dir.dtype();
    let model = LanguageModel::with_weights(&dir.config, dir.weights, &Arena::new())?;
    let bar = ProgressBar::new(windows.len() as u64);
    let (mut bytes, start) = (0, Instant::now());
    let score = score(&model, &ids, &prefix, &windows, |window, _| {
        bytes += tokenizer.byte_count(&ids[window.scored()]);
        bar.inc(1);
        true
    });
    bar.finish_and_clear();
    anyhow::ensure!(score.nats.is_finite(), "the loss is {}: the model's answers are no numbers", score.nats);
    let report = Report {
        perplexity: score.perplexity(),
        bits_per_byte: score.bits_per_byte(bytes),
        nats: score.nats,
        tokens: score.tokens,
        bytes,
        chunks: windows.len(),
        context,
        stride: args.stride,
        prefix_tokens: prefix.len(),
        text_tokens: ids.len(),
        dtype,
        seconds: start.elapsed().as_secs_f64(),
    };
    if args.json {
        return print_line(serde_json::to_string_pretty(&report)?);
    }
    print_line(format_args!(
        "perplexity {:.3}, {:.4} bits per byte; {} tokens scored ({} bytes, {:.1} nats) in {} windows of {} tokens, {:.0} tok/s",
        report.perplexity,
        report.bits_per_byte,
        units::grouped(report.tokens),
        units::grouped(report.bytes),
        report.nats,
        report.chunks,
        report.context,
        (report.chunks * report.context) as f64 / report.seconds.max(1e-9),
    ))
}
