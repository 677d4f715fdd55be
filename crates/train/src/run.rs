//! A training run in a folder: logs, validation, checkpoints, stopping and going on.

use crate::{
    atomic::{AtomicError, Versions, write_atomic},
    checkpoint::ResumeError,
    config::{RunConfig, RunConfigError},
    metrics::{MetricsError, MetricsWriter, Record},
    run_dir::{RunDir, RunDirError},
    tensorboard::{EventError, EventWriter},
    trainer::{Evaluation, StepReport, TrainError, Trainer},
};
use keyfold_data::{DataError, DataSpec, Dataset, Prepare, TokenizerSpec};
use keyfold_tensor::{Arena, Device};
use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

/// What a run tells while it goes on.
pub enum Event<'a> {
    /// Model and data are ready.
    Ready {
        /// The run.
        trainer: &'a Trainer,
    },
    /// An update was made.
    Step(&'a StepReport),
    /// A line of the log, once every `log_every` updates and with each validation.
    Logged(&'a Record),
    /// A checkpoint was written.
    Saved(&'a Path),
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Whether it was asked to stop before its last update.
    pub interrupted: bool,
    /// The last validation.
    pub evaluation: Option<Evaluation>,
    /// The newest checkpoint.
    pub checkpoint: PathBuf,
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The folder cannot be used.
    #[error(transparent)]
    Dir(#[from] RunDirError),
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] RunConfigError),
    /// Data cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Training cannot go on.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// A checkpoint cannot be written or read.
    #[error(transparent)]
    Checkpoint(#[from] ResumeError),
    /// A checkpoint cannot be put in its place.
    #[error(transparent)]
    Atomic(#[from] AtomicError),
    /// Metrics cannot be written.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// TensorBoard events cannot be written.
    #[error(transparent)]
    Events(#[from] EventError),
    /// There is nothing to go on from.
    #[error("{}: no checkpoint to resume from: start the run without --resume in an empty folder", .0.display())]
    NoCheckpoint(PathBuf),
}

/// Opens the data that `config` names and completes the model's vocabulary from its tokenizer.
///
/// # Errors
/// When data or tokenizer cannot be used, or the model's vocabulary is smaller than the tokenizer's.
pub fn prepare(config: &mut RunConfig, cache_dir: &Path) -> Result<Dataset, RunError> {
    let spec = DataSpec { source: config.data.source.parse()?, val: config.data.validation.clone() };
    let tokenizer: TokenizerSpec = config.data.tokenizer.parse()?;
    let mut options = Prepare::new(config.data.seq_len, config.train.seed, cache_dir);
    options.keep_documents_apart = config.data.mask_documents;
    let data = Dataset::prepare(&spec, &tokenizer, &options)?;
    let vocab = data.tokenizer().vocab_size();
    if config.model.vocab_size == 0 {
        config.model.vocab_size = vocab;
    }
    if config.model.vocab_size < vocab {
        let expected = format!("at least the tokenizer's {vocab}, or nothing");
        let error = keyfold_model::ConfigError::value("model.vocab_size", expected, config.model.vocab_size);
        return Err(RunConfigError::Value(error).into());
    }
    config.model.validate().map_err(|error| RunConfigError::Value(error.under("model")))?;
    Ok(data)
}

/// Trains a new run on `device` into the folder `out`, or goes on with the run there when `resume`; stops after the current update
/// when `stop` becomes true. The newest checkpoint is always whole, whatever kills the process.
///
/// # Errors
/// When anything cannot be read or written, or the loss is not finite; the newest checkpoint stays.
pub fn run(
    mut config: RunConfig,
    out: &Path,
    resume: bool,
    device: Device,
    stop: &AtomicBool,
    mut on: impl FnMut(Event<'_>),
) -> Result<Summary, RunError> {
    let dir = if resume { RunDir::open(out)? } else { RunDir::create(out)? };
    let data = prepare(&mut config, &dir.data())?;
    let arena = Arena::on(device).map_err(TrainError::from)?;
    let versions = Versions::open(dir.checkpoints())?;
    let mut state = if resume {
        let newest =
            Versions::latest(&dir.checkpoints())?.ok_or_else(|| RunError::NoCheckpoint(out.to_owned()))?;
        let (trainer, elapsed) = Trainer::resume(config, data, &newest, &arena)?;
        let metrics = MetricsWriter::resume(dir.metrics(), trainer.step)?;
        let events = EventWriter::create(&dir.tensorboard(), Some(trainer.step))?;
        let saved = Some((trainer.step, newest));
        Run { trainer, versions, metrics, events, before: elapsed, start: Instant::now(), saved }
    } else {
        let text = config.to_toml()?;
        write_atomic(&dir.config(), |file| file.write_all(text.as_bytes()))?;
        let trainer = Trainer::new(config, data, &arena)?;
        let metrics = MetricsWriter::create(dir.metrics())?;
        let events = EventWriter::create(&dir.tensorboard(), None)?;
        Run { trainer, versions, metrics, events, before: 0.0, start: Instant::now(), saved: None }
    };
    state.go(stop, &mut on)
}

struct Run {
    trainer: Trainer,
    versions: Versions,
    metrics: MetricsWriter,
    events: EventWriter,
    /// Seconds trained before this process took over.
    before: f64,
    start: Instant,
    /// The newest checkpoint and its step.
    saved: Option<(u64, PathBuf)>,
}

impl Run {
    fn go(&mut self, stop: &AtomicBool, on: &mut dyn FnMut(Event<'_>)) -> Result<Summary, RunError> {
        on(Event::Ready { trainer: &self.trainer });
        let train = self.trainer.config.train.clone();
        let (mut evaluation, mut since) = (None, (Instant::now(), self.trainer.tokens));
        while self.trainer.step < train.steps && !stop.load(Ordering::Relaxed) {
            let report = self.trainer.step()?;
            on(Event::Step(&report));
            let last = report.step == train.steps;
            let due = |every: u64| every > 0 && report.step.is_multiple_of(every);
            let evaluate_now = last || due(train.eval_every);
            if evaluate_now || due(train.log_every) || report.step == 1 {
                let seconds = since.0.elapsed().as_secs_f64();
                let speed = (report.tokens - since.1) as f64 / seconds.max(1e-9);
                if evaluate_now {
                    evaluation = Some(self.trainer.evaluate()?);
                }
                self.log(&report, speed, evaluation.filter(|_| evaluate_now), on)?;
                since = (Instant::now(), report.tokens);
            }
            if !last && due(train.save_every) {
                self.save(on)?;
                since = (Instant::now(), report.tokens);
            }
        }
        let interrupted = self.trainer.step < train.steps;
        let checkpoint = match &self.saved {
            Some((step, saved)) if *step == self.trainer.step => saved.clone(),
            _ => self.save(on)?,
        };
        Ok(Summary { interrupted, evaluation, checkpoint })
    }

    fn log(
        &mut self,
        report: &StepReport,
        tokens_per_s: f64,
        evaluation: Option<Evaluation>,
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), RunError> {
        let record = Record {
            step: report.step,
            tokens: report.tokens,
            loss: report.loss,
            lr: report.lr,
            grad_norm: report.grad_norm,
            tokens_per_s,
            elapsed_s: self.elapsed(),
            val_loss: evaluation.map(|e| e.loss),
            val_bits_per_byte: evaluation.map(|e| e.bits_per_byte),
            recall_accuracy: evaluation.and_then(|e| e.recall_accuracy),
        };
        self.metrics.write(&record)?;
        let scalars = [
            ("train/loss", Some(record.loss)),
            ("train/lr", Some(record.lr)),
            ("train/grad_norm", Some(record.grad_norm)),
            ("train/tokens_per_s", Some(record.tokens_per_s)),
            ("validation/loss", record.val_loss),
            ("validation/bits_per_byte", record.val_bits_per_byte),
            ("validation/recall_accuracy", record.recall_accuracy),
        ];
        for (tag, value) in scalars {
            if let Some(value) = value {
                self.events.scalar(tag, record.step, value)?;
            }
        }
        on(Event::Logged(&record));
        Ok(())
    }

    fn save(&mut self, on: &mut dyn FnMut(Event<'_>)) -> Result<PathBuf, RunError> {
        self.metrics.sync()?;
        let elapsed = self.elapsed();
        let keep = self.trainer.config.train.keep_checkpoints;
        let path = self.versions.publish(self.trainer.step, keep, |dir| {
            self.trainer.write_checkpoint(dir, elapsed).map_err(RunError::from)
        })?;
        on(Event::Saved(&path));
        self.saved = Some((self.trainer.step, path.clone()));
        Ok(path)
    }

    fn elapsed(&self) -> f64 {
        self.before + self.start.elapsed().as_secs_f64()
    }
}
