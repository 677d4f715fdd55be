//! `keyfold train`: a run from a configuration, into a folder.

use super::print_line;
use crate::{interrupt, progress::Progress};
use keyfold_core::units;
use keyfold_tensor::Device;
use keyfold_train::{
    config::RunConfig,
    run::{Event, run as train},
};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The configuration; with --resume the run's own by default.
    #[arg(required_unless_present = "resume")]
    config: Option<PathBuf>,
    /// Overrides a value of the configuration, such as train.lr=0.001.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Folder of the run [default: runs/ and the configuration's name].
    #[arg(long, value_name = "DIR", required_unless_present = "config")]
    out: Option<PathBuf>,
    /// Go on from the newest checkpoint in the folder.
    #[arg(long)]
    resume: bool,
}

pub(crate) fn run(args: &Args, device: Device) -> anyhow::Result<()> {
    let out = match (&args.out, &args.config) {
        (Some(out), _) => out.clone(),
        (None, Some(config)) => PathBuf::from("runs").join(config.file_stem().unwrap_or_default()),
        (None, None) => anyhow::bail!("--out is missing: expected the folder of the run to resume"),
    };
    let path = args.config.clone().unwrap_or_else(|| out.join("config.toml"));
    let config = RunConfig::load(&path, &args.overrides)?;
    let (steps, stop) = (config.train.steps, interrupt::flag()?);
    let mut progress = None;
    let summary = train(config, &out, args.resume, device, &stop, |event| match event {
        Event::Ready { trainer } => {
            let model = &trainer.config().model;
            eprintln!("data: {}", trainer.data().describe());
            eprintln!(
                "{} of {} parameters, update {} of {steps}, into {}",
                model.attention.kind(),
                units::count(trainer.model().weights().count() as u64),
                trainer.steps_done(),
                out.display()
            );
            progress = Some(Progress::new("train", steps, trainer.steps_done()));
        }
        Event::Step(step) => {
            if let Some(progress) = &mut progress {
                progress.step(step.step, step.tokens, step.loss);
            }
        }
        Event::Logged(record) => {
            if let (Some(progress), Some(loss), Some(bits)) =
                (&progress, record.val_loss, record.val_bits_per_byte)
            {
                let recall = record
                    .recall_accuracy
                    .map_or_else(String::new, |r| format!("  recall {:.1} %", 100.0 * r));
                progress.line(&format!(
                    "step {}: validation loss {loss:.4}  {bits:.4} bits/byte{recall}  ({:.0} tok/s)",
                    record.step, record.tokens_per_s
                ));
            }
        }
        Event::Saved(path) => {
            if let Some(progress) = &progress {
                progress.line(&format!("saved {}", path.display()));
            }
        }
    })?;
    if let Some(progress) = progress {
        progress.finish();
    }
    if summary.interrupted {
        print_line(format_args!("stopped; go on with: keyfold train --resume --out {}", out.display()))?;
    }
    print_line(summary.checkpoint.display())
}
