//! `keyfold plan`: designs of equal size within a cache budget.

use super::{inspect::WorkloadArgs, print_line};
use anyhow::Context;
use keyfold_core::units;
use keyfold_plan::{
    Source, Target,
    hardware::Hardware,
    inspect::inspect,
    search::{Goal, Plan, Request, search},
};
use keyfold_train::{
    atomic::write_atomic,
    config::{DataConfig, RunConfig, TrainConfig},
    plot::{Design, Designs},
};
use std::{
    io::Write,
    path::{Path, PathBuf},
};

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("budget").required(true).args(["kv_budget", "kv_ratio"])))]
pub(crate) struct Args {
    /// What to match: a training configuration, a model folder, a config.json, or a preset such as paper-7b-mha.
    target: String,
    /// Largest cache in bytes per token, all layers.
    #[arg(long, value_name = "BYTES_PER_TOKEN")]
    kv_budget: Option<u64>,
    /// Largest cache as a part of the target's, such as 0.125.
    #[arg(long, value_name = "R")]
    kv_ratio: Option<f64>,
    /// How far from the target's parameters a design may be.
    #[arg(long, default_value = "1%", value_parser = share, value_name = "PERCENT")]
    params_within: f64,
    /// Hardware to decode on, as for `inspect`.
    #[arg(long, default_value = "H100", value_name = "NAME")]
    hardware: String,
    #[command(flatten)]
    workload: WorkloadArgs,
    /// Sequences decoded together.
    #[arg(long, default_value_t = 32, value_name = "B")]
    batch: u64,
    /// Choose the largest total effective rank [default: the widest latent of those within a quarter of it].
    #[arg(long, conflicts_with = "min_cost")]
    max_ter: bool,
    /// Choose the fastest decoding of those with the target's total effective rank.
    #[arg(long)]
    min_cost: bool,
    /// Write the chosen design as a training configuration.
    #[arg(long, value_name = "FILE.toml")]
    write: Option<PathBuf>,
    /// Draw the front.
    #[arg(long, value_name = "FILE.svg|FILE.png")]
    plot: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// `1%` or `0.01`.
fn share(text: &str) -> Result<f64, String> {
    let (number, scale) = match text.strip_suffix('%') {
        Some(number) => (number, 100.0),
        None => (text, 1.0),
    };
    let share: f64 = number
        .trim()
        .parse()
        .map_err(|_| "expected a percentage such as 1%, or a part such as 0.01".to_owned())?;
    Ok(share / scale)
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(path) = &args.plot {
        Designs::check_name(path)?;
    }
    let target = Target::open(&args.target)?;
    let workload = args.workload.of(&target, args.batch)?;
    let kv_budget = match (args.kv_budget, args.kv_ratio) {
        (Some(bytes), _) => bytes,
        (None, Some(ratio)) => {
            anyhow::ensure!(
                ratio.is_finite() && ratio > 0.0 && ratio <= 1e6,
                "--kv-ratio is {ratio}: expected a number above 0, such as 0.125"
            );
            (ratio * inspect(&target, &workload)?.kv_bytes_per_token as f64).round() as u64
        }
        (None, None) => anyhow::bail!("--kv-budget is missing: expected bytes per token, or --kv-ratio"),
    };
    let goal = match (args.max_ter, args.min_cost) {
        (true, _) => Goal::MaxTer,
        (false, true) => Goal::MinCost,
        (false, false) => Goal::Balanced,
    };
    let hardware = Hardware::named(&args.hardware)?;
    let request = Request { kv_budget, tolerance: args.params_within, workload, hardware, goal };
    let plan = search(&target, &request)?;
    if let Some(path) = &args.write {
        write(path, &target, &plan)?;
    }
    if let Some(path) = &args.plot {
        picture(&plan).write(path)?;
    }
    match args.json {
        true => print_line(serde_json::to_string_pretty(&plan)?),
        false => print_line(plan.to_text().trim_end()),
    }
}

/// Writes the chosen model with the data and the training of the target, or with the defaults.
fn write(path: &Path, target: &Target, plan: &Plan) -> anyhow::Result<()> {
    let mut model = plan.chosen().model.clone();
    let config = match &target.source {
        Source::Toml(run) => {
            let run = RunConfig::load(run, &[])?;
            // A vocabulary that was the tokenizer's to give stays so.
            model.vocab_size = run.model.vocab_size;
            RunConfig { model, ..run }
        }
        Source::Preset | Source::Json(_) => {
            let data = DataConfig {
                source: "synthetic:stories".to_owned(),
                validation: None,
                tokenizer: "bytes".to_owned(),
                seq_len: model.max_position_embeddings.min(256),
                mask_documents: false,
            };
            RunConfig { model, data, train: TrainConfig::of_steps(1000) }
        }
    };
    config.validate().with_context(|| format!("{}: the chosen design", path.display()))?;
    let text = config.to_toml()?;
    Ok(write_atomic(path, |file| file.write_all(text.as_bytes()))?)
}

fn picture(plan: &Plan) -> Designs {
    let point = |design: &keyfold_plan::search::Design, name: Option<&str>| Design {
        kind: design.attention.to_owned(),
        name: name.map(str::to_owned),
        kv_bytes_per_token: design.kv_bytes_per_token,
        total_effective_rank: design.total_effective_rank,
        step_seconds: design.step_seconds,
    };
    let front = plan.front.iter().map(|design| point(design, design.chosen.then_some("chosen")));
    let others =
        plan.best_of_kind.iter().filter(|design| !plan.front.iter().any(|own| own.model == design.model));
    let others = others.map(|design| point(design, Some(design.attention)));
    Designs {
        title: format!(
            "Attention for {} within {} bytes of cache per token",
            plan.target,
            units::grouped(plan.kv_budget)
        ),
        subtitle: format!(
            "{} parameters; steps of {} sequences of {} tokens on {}, cache at {}, lower bounds",
            units::count(plan.reference.params_total),
            units::grouped(plan.workload.batch),
            units::grouped(plan.workload.context),
            plan.hardware.name,
            plan.workload.kv_dtype,
        ),
        designs: [point(&plan.reference, Some("target"))].into_iter().chain(front).chain(others).collect(),
    }
}
