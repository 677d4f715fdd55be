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
    /// Tokens in the cache of each sequence.
    #[arg(long, default_value_t = 8192, value_name = "N")]
    context: u64,
    /// Storage of the cache: bf16, fp8 or int4.
    #[arg(long, default_value_t, value_name = "DTYPE")]
    kv_dtype: KvDtype,
}

impl WorkloadArgs {
    pub(crate) fn with_batch(self, batch: u64) -> anyhow::Result<Workload> {
        Ok(Workload::new(self.context, batch, self.kv_dtype)?)
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let workload = args.workload.with_batch(args.batch)?;
    let mut told = inspect(&Target::open(&args.target)?, &workload)?;
    if let Some(name) = &args.hardware {
        told = told.on(&Hardware::named(name)?);
    }
    match args.json {
        true => print_line(serde_json::to_string_pretty(&told)?),
        false => print_line(told.to_text()),
    }
}
