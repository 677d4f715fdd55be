//! The `keyfold` command: one subcommand a file in [`commands`]; what they do lives in the libraries.

mod commands;
mod interrupt;
mod model_dir;
mod progress;

use clap::{Parser, Subcommand, ValueEnum};
use keyfold_ops::gemm::{Precision, set_precision};
use keyfold_tensor::{Device, catch};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Design, train, compare and run language models whose attention keeps a small KV cache.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
struct Cli {
    /// Threads to compute with [default: all].
    #[arg(long, global = true, value_name = "N")]
    threads: Option<usize>,
    /// Device to compute on.
    #[arg(long, global = true, default_value_t, value_name = "DEVICE")]
    device: Device,
    /// Precision of f32 matrix products [default: high for training and the benchmarks of it, else highest].
    #[arg(long, global = true, value_enum, value_name = "P")]
    matmul_precision: Option<MatmulPrecision>,
    #[command(subcommand)]
    command: Command,
}

/// PyTorch's float32_matmul_precision; the lower ones take effect on processors with matrix tiles (AMX).
#[derive(Clone, Copy, Debug, ValueEnum)]
enum MatmulPrecision {
    /// In f32.
    Highest,
    /// As three products of bf16 halves, about 16 bits.
    High,
    /// As one product of bf16, 8 bits.
    Medium,
}

impl From<MatmulPrecision> for Precision {
    fn from(precision: MatmulPrecision) -> Self {
        match precision {
            MatmulPrecision::Highest => Self::Highest,
            MatmulPrecision::High => Self::High,
            MatmulPrecision::Medium => Self::Medium,
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train small models that differ only in their attention and report cache against loss.
    Compare(commands::compare::Args),
    /// Train a model from a configuration.
    Train(commands::train::Args),
    /// Write text with a trained model.
    Generate(commands::generate::Args),
    /// Talk with a model in the terminal.
    Chat(commands::chat::Args),
    /// Serve a model over HTTP, as OpenAI's API does, with a page to watch the cache.
    Serve(commands::serve::Args),
    /// Measure how well a model predicts a text.
    Perplexity(commands::perplexity::Args),
    /// Write a model in the form that other software reads.
    Export(commands::export::Args),
    /// Get a model from the Hugging Face hub.
    Download(commands::download::Args),
    /// Write the logits of given tokens to a safetensors file.
    Logits(commands::logits::Args),
    /// Explain what a model's attention holds and costs.
    Inspect(commands::inspect::Args),
    /// Find designs of a model's size whose cache fits a budget.
    Plan(commands::plan::Args),
    /// Print the capacity table of the MFA paper for given sizes.
    Table(commands::table::Args),
    /// Check the kernels of a device against the host's.
    Selftest(commands::selftest::Args),
    /// Measure speed.
    #[command(subcommand)]
    Bench(commands::bench::Command),
    /// Get well-known corpora.
    #[command(subcommand)]
    Data(commands::data::Command),
}

impl Command {
    /// Whether `--device` may name another than the CPU.
    fn runs_on_devices(&self) -> bool {
        match self {
            Self::Selftest(_) | Self::Train(_) | Self::Compare(_) => true,
            Self::Generate(_) | Self::Chat(_) | Self::Serve(_) => true,
            Self::Bench(command) => command.runs_on_devices(),
            _ => false,
        }
    }

    /// What is logged where RUST_LOG does not say: a server tells what it does.
    fn log_level(&self) -> &'static str {
        match self {
            Self::Serve(_) => "info",
            _ => "error",
        }
    }

    /// Training is as good with 16 bits of a product (docs/lab.md) and up to twice as fast; what is checked against other
    /// software is computed in full.
    fn matmul_precision(&self) -> MatmulPrecision {
        match self {
            Self::Compare(_) | Self::Train(_) => MatmulPrecision::High,
            Self::Bench(command) if command.trains() => MatmulPrecision::High,
            _ => MatmulPrecision::Highest,
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(cli.command.log_level()));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match catch(|| run(cli)).map_err(anyhow::Error::from).flatten() {
        Ok(()) => ExitCode::SUCCESS,
        // A closed pipe is how `| head` says that it has seen enough.
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io =
        |cause: &(dyn std::error::Error + 'static)| cause.downcast_ref::<std::io::Error>().map(|e| e.kind());
    error.chain().filter_map(io).any(|kind| kind == std::io::ErrorKind::BrokenPipe)
}

fn run(cli: Cli) -> anyhow::Result<()> {
    if let Some(threads) = cli.threads {
        anyhow::ensure!(threads > 0, "--threads is 0: expected at least 1");
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    let device = cli.device;
    anyhow::ensure!(
        device == Device::Cpu || cli.command.runs_on_devices(),
        "--device {device}: this command computes on the cpu alone"
    );
    device.open()?;
    set_precision(cli.matmul_precision.unwrap_or_else(|| cli.command.matmul_precision()).into());
    match cli.command {
        Command::Compare(args) => commands::compare::run(&args, device),
        Command::Train(args) => commands::train::run(&args, device),
        Command::Generate(args) => commands::generate::run(&args, device),
        Command::Chat(args) => commands::chat::run(&args, device),
        Command::Serve(args) => commands::serve::run(&args, device),
        Command::Perplexity(args) => commands::perplexity::run(&args),
        Command::Export(args) => commands::export::run(&args),
        Command::Download(args) => commands::download::run(&args),
        Command::Logits(args) => commands::logits::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Plan(args) => commands::plan::run(&args),
        Command::Table(args) => commands::table::run(&args),
        Command::Selftest(args) => commands::selftest::run(&args, device),
        Command::Bench(command) => commands::bench::run(&command, device),
        Command::Data(command) => commands::data::run(&command),
    }
}
