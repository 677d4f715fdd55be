//! `keyfold inspect`: what a model's attention holds and costs.

use super::print_line;
use keyfold_plan::{KvDtype, Target, Workload, hardware::Hardware, inspect::inspect};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A training configuration, a model folder, a config.json, or a preset such as step-3.
    target: String,
    #[command(flatten)]
    workload: WorkloadArgs,
    /// Sequences decoded together.
    #[arg(long, default_value_t = 1, value_name = "B")]
    batch: u64,
    /// Hardware to tell the limits on: H100, H200, H800, H20, A100, A800, B200, 910B, MI300X, or cpu: this machine.
    #[arg(long, value_name = "NAME")]
    hardware: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What is decoded.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct WorkloadArgs {
    /// Tokens in the cache of each sequence [default: 8192, or the model's longest sequence].
    #[arg(long, value_name = "N")]
    context: Option<u64>,
    /// Storage of the cache: bf16, fp8 or int4.
    #[arg(long, default_value_t, value_name = "DTYPE")]
    kv_dtype: KvDtype,
}

/// Tokens of context where the model has room for them.
const CONTEXT: u64 = 8192;

impl WorkloadArgs {
    pub(crate) fn of(self, target: &Target, batch: u64) -> anyhow::Result<Workload> {
        let longest = target.config.max_position_embeddings as u64;
        Ok(Workload::new(self.context.unwrap_or(CONTEXT.min(longest)), batch, self.kv_dtype)?)
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let target = Target::open(&args.target)?;
    let mut told = inspect(&target, &args.workload.of(&target, args.batch)?)?;
    if let Some(name) = &args.hardware {
        told = told.on(&Hardware::named(name)?);
    }
    match args.json {
        true => print_line(serde_json::to_string_pretty(&told)?),
        false => print_line(told.to_text()),
    }
}
