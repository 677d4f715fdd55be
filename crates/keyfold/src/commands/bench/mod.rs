//! `keyfold bench`: speed of training steps, of prefill and decoding, and of single ops.

mod attention;
mod ceilings;
mod decode;
mod ops;
mod prefill;
mod serve;
mod shape;
mod traffic;
mod train;

use super::print_line;
use keyfold_tensor::Device;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Whole training steps on random tokens.
    Train(train::Args),
    /// Generation from a cache.
    Decode(decode::Args),
    /// Reading a prompt into a cache, one sequence.
    Prefill(prefill::Args),
    /// A server under load: times that clients wait, and tokens in all.
    Serve(Box<serve::Args>),
    /// Single ops at the shapes of a training step.
    Ops(ops::Args),
    /// Attention of a decoding step over a paged cache, beside what the device can do.
    Attention(attention::Args),
}

impl Command {
    /// Whether `--device` may name another than the CPU.
    pub(crate) fn runs_on_devices(&self) -> bool {
        !matches!(self, Self::Ops(_))
    }

    /// Whether this measures what training does.
    pub(crate) fn trains(&self) -> bool {
        matches!(self, Self::Train(_) | Self::Ops(_))
    }
}

pub(crate) fn run(command: &Command, device: Device) -> anyhow::Result<()> {
    match command {
        Command::Train(args) => train::run(args, device),
        Command::Decode(args) => decode::run(args, device),
        Command::Prefill(args) => prefill::run(args, device),
        Command::Serve(args) => serve::run(args, device),
        Command::Ops(args) => ops::run(args),
        Command::Attention(args) => attention::run(args, device),
    }
}

/// Prints `rows` as one JSON array, or each by `line`.
fn print<T: serde::Serialize>(rows: &[T], json: bool, line: impl Fn(&T) -> String) -> anyhow::Result<()> {
    if json {
        return print_line(serde_json::to_string_pretty(rows)?);
    }
    rows.iter().try_for_each(|row| print_line(line(row)))
}
