//! `keyfold bench train`.

use super::{print, shape::ShapeArgs};
use keyfold_core::units;
use keyfold_tensor::Device;
use keyfold_train::bench::{TrainBench, bench_train};

/// Most tokens of a step.
const MAX_TOKENS: usize = 1 << 26;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    shape: ShapeArgs,
    /// Sequences of a step.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 256)]
    seq: usize,
    /// Steps to take the median of.
    #[arg(long, default_value_t = 16)]
    steps: usize,
    /// Print a JSON array.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, device: Device) -> anyhow::Result<()> {
    anyhow::ensure!(args.steps > 0, "--steps is 0: expected at least 1");
    anyhow::ensure!(args.batch > 0 && args.seq > 0, "--batch and --seq: expected at least 1");
    let tokens = args.batch.checked_mul(args.seq).filter(|tokens| *tokens <= MAX_TOKENS);
    anyhow::ensure!(
        tokens.is_some(),
        "--batch {} --seq {}: expected at most {MAX_TOKENS} tokens",
        args.batch,
        args.seq
    );
    let mut rows = Vec::new();
    for model in args.shape.models(args.seq)? {
        rows.push(bench_train(&TrainBench {
            model,
            batch: args.batch,
            seq: args.seq,
            steps: args.steps,
            device,
        })?);
    }
    print(&rows, args.json, |row| {
        let memory = row.peak_rss_mib.map_or_else(|| "unknown".to_owned(), |mib| format!("{mib:.0} MiB"));
        let place = match row.device_mib {
            None => format!("{} threads", row.threads),
            Some(mib) => format!("{} with {mib:.0} MiB taken", row.device),
        };
        format!(
            "{:7} {:>6} parameters, {} x {} tokens: {:.0} tok/s, {:.1} ms a step, {:.1} TFLOP/s, peak {memory}, {place}",
            row.attention,
            units::count(row.params as u64),
            row.batch,
            row.seq,
            row.tokens_per_s,
            row.step_ms,
            row.model_tflops
        )
    })
}
