//! `keyfold compare`: the main job, from nothing to a table.

use super::print_line;
use crate::{interrupt, progress::Progress};
use anyhow::Context;
use keyfold_core::units;
use keyfold_model::attention::DESIGNS;
use keyfold_tensor::Device;
use keyfold_train::{
    compare::{Budget, CompareEvent, CompareOptions, compare},
    config::RunConfig,
};
use std::path::{Path, PathBuf};

/// The run that all variants share unless told otherwise.
const DEFAULTS: &str = include_str!("compare.toml");
/// Minutes of a comparison that is given no budget.
const DEFAULT_MINUTES: f64 = 4.0;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Attention kinds, separated by commas [default: all].
    #[arg(long, value_delimiter = ',', value_name = "KIND")]
    attention: Vec<String>,
    /// A text file or folder, or synthetic:stories.
    #[arg(long, value_name = "PATH")]
    data: Option<String>,
    /// Time for the whole comparison [default: 4].
    #[arg(long, value_name = "M", conflicts_with = "steps")]
    minutes: Option<f64>,
    /// Updates of each variant.
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Folder for the results; must be new or empty [default: runs/compare-1, -2, ...].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Seed of weights and data.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// A configuration to use instead of the built-in one; its model must be mha, to which all are matched in size.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Overrides a value of the configuration, such as model.hidden_size=256.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

pub(crate) fn run(args: &Args, device: Device) -> anyhow::Result<()> {
    let base = configuration(args)?;
    let budget = match (args.steps, args.minutes) {
        (Some(steps), _) => {
            anyhow::ensure!(steps > 0, "--steps is 0: expected at least 1");
            Budget::Steps(steps)
        }
        (None, minutes) => {
            let minutes = minutes.unwrap_or(DEFAULT_MINUTES);
            anyhow::ensure!(
                minutes.is_finite() && minutes > 0.0,
                "--minutes is {minutes}: expected a number above 0"
            );
            Budget::Minutes(minutes)
        }
    };
    let kinds = if args.attention.is_empty() {
        DESIGNS.iter().map(|(kind, _)| (*kind).to_owned()).collect()
    } else {
        args.attention.clone()
    };
    let out = args.out.clone().unwrap_or_else(free_folder);
    let command: Vec<String> = std::env::args().collect();
    let options = CompareOptions { base, kinds, budget, device, out, command: command.join(" ") };
    let stop = interrupt::flag()?;
    let (mut progress, mut steps_of_each) = (None::<Progress>, 0);
    let report = compare(&options, &stop, &mut |event| match event {
        CompareEvent::Ready { data, models, steps } => {
            steps_of_each = steps;
            eprintln!("data: {}", data.describe());
            eprintln!(
                "{} variants of {} parameters, {steps} updates each, into {}",
                models.len(),
                models
                    .first()
                    .and_then(|m| m.parameters().ok())
                    .map_or_else(String::new, |n| units::count(n as u64)),
                options.out.display()
            );
        }
        CompareEvent::Variant(name) => progress = Some(Progress::new(name, steps_of_each, 0)),
        CompareEvent::Step(step) => {
            if let Some(progress) = &mut progress {
                progress.step(step.step, step.tokens, step.loss);
            }
        }
        CompareEvent::Done(run) => {
            if let Some(progress) = progress.take() {
                progress.finish();
            }
            eprintln!(
                "{:>8}  loss {:.4}  {} B of cache per token  {:.0} tok/s",
                run.attention,
                run.val_loss,
                units::grouped(run.kv_bytes_per_token),
                run.train_tokens_per_s
            );
        }
    })?;
    print_line(report.to_table())?;
    if let Some((name, sample)) =
        report.runs.iter().rev().find_map(|run| Some((&run.attention, run.sample.as_ref()?)))
    {
        print_line(format_args!("{name} writes:\n\n{}\n", sample.trim()))?;
    }
    print_line(format_args!(
        "{}: report.md, report.json, loss.png, loss.svg, and a model folder for each variant",
        options.out.display()
    ))
}

fn configuration(args: &Args) -> anyhow::Result<RunConfig> {
    let mut overrides = Vec::new();
    if let Some(data) = &args.data {
        overrides.push(format!("data.source={}", serde_json::to_string(data)?));
    }
    if let Some(seed) = args.seed {
        overrides.push(format!("train.seed={seed}"));
    }
    overrides.extend(args.overrides.iter().cloned());
    let config = match &args.config {
        Some(path) => RunConfig::load(path, &overrides),
        None => RunConfig::parse(DEFAULTS, Path::new("built-in configuration"), &overrides),
    };
    config.context("the comparison's configuration")
}

/// The first `runs/compare-N` that does not exist.
fn free_folder() -> PathBuf {
    (1..).map(|n| PathBuf::from(format!("runs/compare-{n}"))).find(|path| !path.exists()).unwrap_or_default()
}
