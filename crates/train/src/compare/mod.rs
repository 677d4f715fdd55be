//! Models that differ only in their attention, trained on the same tokens in the same order: what each design pays in
//! KV cache and gets in loss.

mod budget;
mod decode;

pub use budget::Budget;
pub use decode::{DecodeBench, bench_decode};

use crate::{
    atomic::AtomicError,
    checkpoint::ResumeError,
    config::RunConfig,
    memory::PeakScope,
    metrics::{MetricsWriter, Record},
    plot::{Figure, PlotError},
    report::{CurvePoint, Report, RunReport, Setup},
    run::{RunError, prepare},
    run_dir::{RunDir, RunDirError},
    schedule::Schedule,
    trainer::{Evaluation, StepReport, TrainError, Trainer},
};
use keyfold_core::DType;
use keyfold_data::Dataset;
use keyfold_model::{
    ConfigError, ModelConfig,
    attention::{AttentionConfig, DESIGNS, Scale},
    match_params,
};
use keyfold_tensor::{Arena, Device};
use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

/// What is compared.
#[derive(Clone, Debug)]
pub struct CompareOptions {
    /// The run that all variants share; its model is the reference whose size they are matched to.
    pub base: RunConfig,
    /// Attention kinds, in the order of the report.
    pub kinds: Vec<String>,
    /// How long to train.
    pub budget: Budget,
    /// Where to train.
    pub device: Device,
    /// Folder of the results.
    pub out: PathBuf,
    /// The command line, for the report.
    pub command: String,
}

/// Largest allowed deviation of a variant's parameters from the reference's.
pub const PARAMETER_TOLERANCE: f64 = 0.01;
/// Validations on the way, for the curves.
const CURVE_POINTS: u64 = 16;
/// Tokens of such a validation.
const CURVE_TOKENS: u64 = 8192;
/// Updates from one line of a variant's metrics to the next.
const LOG_EVERY: u64 = 10;

/// What a comparison tells while it goes on.
pub enum CompareEvent<'a> {
    /// Data and models are ready.
    Ready {
        /// The data.
        data: &'a Dataset,
        /// The models, in order.
        models: &'a [ModelConfig],
        /// Updates that each will make.
        steps: u64,
    },
    /// A variant begins.
    Variant(&'a str),
    /// An update was made.
    Step(&'a StepReport),
    /// A variant is done.
    Done(&'a RunReport),
}

/// Why a comparison failed.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// A variant's run failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An attention kind that is not known.
    #[error("--attention: unknown kind `{found}`: expected one of {known}")]
    Kind {
        /// What was given.
        found: String,
        /// What is known.
        known: String,
    },
    /// An attention kind that is given twice.
    #[error("--attention: `{kind}` is there twice")]
    Repeated {
        /// The kind.
        kind: String,
    },
    /// The plots cannot be written.
    #[error(transparent)]
    Plot(#[from] PlotError),
    /// It was asked to stop; variants that were done are in the report.
    #[error("stopped; {done} of {all} variants are in the report")]
    Stopped {
        /// Variants that were done.
        done: usize,
        /// Variants in all.
        all: usize,
    },
}

macro_rules! through_run_error {
    ($($error:ty),+) => {
        $(impl From<$error> for CompareError {
            fn from(error: $error) -> Self {
                Self::Run(error.into())
            }
        })+
    };
}
through_run_error!(
    AtomicError,
    ResumeError,
    RunDirError,
    crate::metrics::MetricsError,
    crate::trainer::TrainError,
    keyfold_data::DataError,
    crate::config::RunConfigError
);

/// Trains and measures every variant and writes `report.json`, `report.md`, `loss.svg`, `loss.png` and a model folder
/// for each variant.
///
/// # Errors
/// When a variant cannot be built, trained or written.
pub fn compare(
    options: &CompareOptions,
    stop: &AtomicBool,
    on: &mut dyn FnMut(CompareEvent<'_>),
) -> Result<Report, CompareError> {
    check_kinds(&options.kinds)?;
    let dir = RunDir::create(&options.out)?;
    let mut base = options.base.clone();
    let data = prepare(&mut base, &dir.data())?;
    let models = variants(&base.model, &options.kinds)?;
    let (steps, mut data) = options.budget.steps(&base, &models, data, options.device)?;
    base.train.steps = steps;
    base.train.schedule = fitted(base.train.schedule, steps);
    write_config(&dir, &base)?;
    on(CompareEvent::Ready { data: &data, models: &models, steps });

    let mut report = Report {
        data: data.describe().source.clone(),
        tokenizer: data.describe().tokenizer.clone(),
        tokens: steps * (base.train.batch_size * base.train.accumulate * base.data.seq_len) as u64,
        seed: base.train.seed,
        runs: Vec::new(),
        setup: setup(options, &base),
    };
    let start = data.state();
    let mha = mha_bytes(&base.model)?;
    for model in &models {
        on(CompareEvent::Variant(model.attention.kind()));
        data.restore(&start)?;
        let config = RunConfig { model: model.clone(), ..base.clone() };
        let (run, returned) = train_variant(config, data, options, mha, stop, on)?;
        data = returned;
        let Some(run) = run else {
            let (done, all) = (report.runs.len(), models.len());
            publish(&report, &options.out)?;
            return Err(CompareError::Stopped { done, all });
        };
        on(CompareEvent::Done(&run));
        report.runs.push(run);
    }
    publish(&report, &options.out)?;
    Ok(report)
}

/// Refuses unknown and repeated kinds: a variant's folder has the name of its kind.
fn check_kinds(kinds: &[String]) -> Result<(), CompareError> {
    for (index, kind) in kinds.iter().enumerate() {
        if !DESIGNS.iter().any(|(known, _)| known == kind) {
            return Err(CompareError::Kind { found: kind.clone(), known: kinds_known() });
        }
        if kinds[..index].contains(kind) {
            return Err(CompareError::Repeated { kind: kind.clone() });
        }
    }
    Ok(())
}

/// The model of each kind, all as large as `reference`.
fn variants(reference: &ModelConfig, kinds: &[String]) -> Result<Vec<ModelConfig>, CompareError> {
    let mha = match &reference.attention {
        AttentionConfig::Mha(mha) => mha,
        other => {
            let found = other.kind();
            return Err(ConfigError::value(
                "model.attention.kind",
                "mha: the reference of a comparison",
                found,
            )
            .into());
        }
    };
    // What all designs share is carried over; what some of them lack must not differ between them in silence.
    let own = [
        ("qkv_bias", mha.qkv_bias),
        ("qk_norm", mha.qk_norm),
        ("rope_scaling", mha.rope_scaling.is_some()),
        ("softmax_scale", mha.softmax_scale.is_some()),
        ("window", mha.window.is_some()),
    ];
    if let Some((key, _)) = own.into_iter().find(|(_, given)| *given) {
        let key = format!("model.attention.{key}");
        return Err(
            ConfigError::value(key, "absent: not every design of a comparison has it", "given").into()
        );
    }
    let scale = Scale {
        hidden: reference.hidden_size,
        head_dim: mha.head_dim,
        position: mha.position,
        rope_theta: mha.rope_theta,
    };
    kinds
        .iter()
        .map(|kind| {
            let attention = AttentionConfig::preset(kind, &scale)
                .ok_or_else(|| CompareError::Kind { found: kind.clone(), known: kinds_known() })?;
            Ok(match_params(reference, &attention, PARAMETER_TOLERANCE)?.config)
        })
        .collect()
}

/// All kinds, for people.
fn kinds_known() -> String {
    DESIGNS.iter().map(|(kind, _)| *kind).collect::<Vec<_>>().join(", ")
}

/// A warm-up that fits into a short run.
fn fitted(schedule: Schedule, steps: u64) -> Schedule {
    let fit = |warmup: u64| warmup.min(steps.div_ceil(10));
    match schedule {
        Schedule::Cosine { warmup, final_ratio } => Schedule::Cosine { warmup: fit(warmup), final_ratio },
        Schedule::Wsd { warmup, decay_fraction, final_ratio } => {
            Schedule::Wsd { warmup: fit(warmup), decay_fraction, final_ratio }
        }
        constant => constant,
    }
}

fn write_config(dir: &RunDir, base: &RunConfig) -> Result<(), CompareError> {
    let text = base.to_toml()?;
    Ok(crate::atomic::write_atomic(&dir.config(), |file| file.write_all(text.as_bytes()))?)
}

fn setup(options: &CompareOptions, base: &RunConfig) -> Setup {
    Setup {
        command: options.command.clone(),
        version: format!("keyfold {}", env!("CARGO_PKG_VERSION")),
        machine: match options.device {
            Device::Cpu => {
                format!("{} threads, {}", rayon::current_num_threads(), keyfold_ops::gemm::describe())
            }
            device => device.describe(),
        },
        sequence_tokens: base.data.seq_len as u64,
        batch_sequences: (base.train.batch_size * base.train.accumulate) as u64,
        val_tokens: base.train.eval_tokens,
        decode_sequences: 1,
        decode_prompt_tokens: DecodeBench::PROMPT as u64,
        decode_new_tokens: DecodeBench::NEW as u64,
    }
}

/// Bytes per token of multi-head attention in the reference's shape, at 16 bit.
fn mha_bytes(reference: &ModelConfig) -> Result<usize, ConfigError> {
    reference.kv_bytes_per_token(DType::Bf16)
}

/// Trains one variant and gives the data back; no report when it was asked to stop.
fn train_variant(
    config: RunConfig,
    data: Dataset,
    options: &CompareOptions,
    mha_bytes: usize,
    stop: &AtomicBool,
    on: &mut dyn FnMut(CompareEvent<'_>),
) -> Result<(Option<RunReport>, Dataset), CompareError> {
    let memory = PeakScope::start();
    let arena = Arena::on(options.device).map_err(TrainError::from)?;
    let kind = config.model.attention.kind();
    let folder = options.out.join(kind);
    std::fs::create_dir_all(&folder).map_err(|source| AtomicError {
        action: "create",
        path: folder.clone(),
        source,
    })?;
    let mut metrics = MetricsWriter::create(folder.join("metrics.jsonl"))?;
    let steps = config.train.steps;
    let mut trainer = Trainer::new(config, data, &arena)?;
    let mut curve = Vec::new();
    let mut seconds = 0.0;
    while trainer.steps_done() < steps {
        if stop.load(Ordering::Relaxed) {
            return Ok((None, trainer.into_data()));
        }
        let before = Instant::now();
        let step = trainer.step()?;
        seconds += before.elapsed().as_secs_f64();
        on(CompareEvent::Step(&step));
        let point = step.step.is_multiple_of(steps.div_ceil(CURVE_POINTS)) && step.step != steps;
        let evaluation = if point { Some(trainer.evaluate_tokens(CURVE_TOKENS)?) } else { None };
        if let Some(evaluation) = evaluation {
            curve.push(CurvePoint { tokens: step.tokens, loss: evaluation.loss });
        }
        if evaluation.is_some() || step.step.is_multiple_of(LOG_EVERY) || step.step == 1 {
            metrics.write(&record(&step, seconds, evaluation))?;
        }
    }
    let evaluation = trainer.evaluate()?;
    let tokens = trainer.tokens_done();
    // On the same text as the points before it, so that the curve has no step.
    curve.push(CurvePoint { tokens, loss: trainer.evaluate_tokens(CURVE_TOKENS)?.loss });
    trainer.write_model(&folder)?;
    let peak_rss_mib = memory.peak_mib();
    let decode = bench_decode(trainer.model(), trainer.data().tokenizer(), DType::Bf16)?;

    let model = &trainer.config().model;
    let design = model.attention.design();
    let (capacity, bytes) = (design.capacity(), model.kv_bytes_per_token(DType::Bf16)?);
    let embeddings = model.vocab_size * model.hidden_size * if model.tie_word_embeddings { 1 } else { 2 };
    let run = RunReport {
        attention: kind.to_owned(),
        params: trainer.model().weights().count() as u64,
        kv_bytes_per_token: bytes as u64,
        total_effective_rank: capacity.total_effective_rank() as u64,
        shared_latent_dim: capacity.shared_latent_dim as u64,
        val_loss: evaluation.loss,
        val_bits_per_byte: Some(evaluation.bits_per_byte),
        recall_accuracy: evaluation.recall_accuracy,
        train_tokens_per_s: tokens as f64 / seconds,
        decode_tokens_per_s: decode.tokens_per_s,
        peak_rss_mib,
        non_embedding_params: (trainer.model().weights().count() - embeddings) as u64,
        kv_ratio_to_mha: Some(bytes as f64 / mha_bytes as f64),
        steps,
        train_seconds: seconds,
        summary: summary(model),
        sample: Some(decode.sample),
        curve,
    };
    Ok((Some(run), trainer.into_data()))
}

fn record(step: &StepReport, seconds: f64, evaluation: Option<Evaluation>) -> Record {
    Record {
        step: step.step,
        tokens: step.tokens,
        loss: step.loss,
        lr: step.lr,
        grad_norm: step.grad_norm,
        tokens_per_s: step.tokens as f64 / seconds,
        elapsed_s: seconds,
        val_loss: evaluation.map(|e| e.loss),
        val_bits_per_byte: evaluation.map(|e| e.bits_per_byte),
        recall_accuracy: evaluation.and_then(|e| e.recall_accuracy),
    }
}

/// The shape of a model in a line.
fn summary(model: &ModelConfig) -> String {
    let attention = serde_json::to_value(&model.attention).unwrap_or_default();
    let sizes = attention.as_object().into_iter().flatten().filter(|(_, value)| value.is_u64());
    let mut sizes: Vec<String> = sizes.map(|(key, value)| format!("{key} {value}")).collect();
    // In one order, whichever the JSON library keeps.
    sizes.sort_unstable();
    format!(
        "{} layers of {}, MLP {}, {}",
        model.num_hidden_layers,
        model.hidden_size,
        model.intermediate_size,
        sizes.join(", ")
    )
}

fn publish(report: &Report, out: &Path) -> Result<(), CompareError> {
    report.write(out)?;
    if !report.runs.is_empty() {
        Figure::from(report).write(out)?;
    }
    Ok(())
}
