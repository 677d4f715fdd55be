//! Speed of a training step on random tokens: what `keyfold bench train` reports.

use crate::{
    config::{OptimizerConfig, TrainConfig},
    memory::{PeakScope, peak_rss_mib},
    optimizer::Optimizer,
    trainer::TrainError,
};
use keyfold_model::{LanguageModel, ModelConfig, Sequences};
use keyfold_ops::adamw::Clip;
use keyfold_tensor::{Arena, Device, catch};
use serde::Serialize;
use std::time::Instant;

/// What is timed.
#[derive(Clone, Debug)]
pub struct TrainBench {
    /// The model.
    pub model: ModelConfig,
    /// Sequences of a step.
    pub batch: usize,
    /// Tokens of a sequence.
    pub seq: usize,
    /// Steps that count, after [`WARMUP`] that do not.
    pub steps: usize,
    /// Where.
    pub device: Device,
}

/// Steps before the clock starts: memory is taken from the system in the first, and a GPU's algorithms are chosen.
pub const WARMUP: usize = 3;

/// One row of `keyfold bench train --json`.
#[derive(Clone, Debug, Serialize)]
pub struct TrainBenchResult {
    /// Attention kind.
    pub attention: &'static str,
    /// Parameters.
    pub params: usize,
    /// Sequences of a step.
    pub batch: usize,
    /// Tokens of a sequence.
    pub seq: usize,
    /// Tokens per second at the median step.
    pub tokens_per_s: f64,
    /// Median time of a step.
    pub step_ms: f64,
    /// Most memory the process held while this ran (where the system cannot tell, since its start).
    pub peak_rss_mib: Option<f64>,
    /// Threads at work.
    pub threads: usize,
    /// The device.
    pub device: String,
    /// Memory of the device that is taken after the last step, its context and what is pooled included.
    pub device_mib: Option<f64>,
    /// Floating-point operations of a model's step per second, in units of 1e12: 6 for each parameter and token, and 3 times
    /// those of attention, half of whose scores are masked.
    pub model_tflops: f64,
    /// The loss of the last step, nats per token.
    pub loss: f64,
}

/// Times whole training steps: forward, backward, gradient norm and AdamW.
///
/// # Errors
/// When the model cannot be made, or the device fails.
pub fn bench_train(bench: &TrainBench) -> Result<TrainBenchResult, TrainError> {
    let arena = Arena::on(bench.device)?;
    catch(|| measure(bench, arena))?
}

fn measure(bench: &TrainBench, arena: Arena) -> Result<TrainBenchResult, TrainError> {
    let memory = PeakScope::start();
    let before = bench.device.available_memory();
    let mut model = LanguageModel::new(&bench.model, 0, &arena)?;
    let mut optimizer = Optimizer::new(OptimizerConfig::default(), model.weights(), &arena);
    let tokens = bench.batch * bench.seq;
    let vocab = bench.model.vocab_size as u64;
    // A fixed pseudo-random sequence: the values do not matter, only that they are spread.
    let ids: Vec<u32> =
        (0..=tokens as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) % vocab) as u32).collect();
    let sequences = Sequences::new(bench.batch, bench.seq);
    let train = TrainConfig::of_steps(1);
    let mut times = Vec::with_capacity(bench.steps);
    let mut last = f64::NAN;
    for step in 0..WARMUP + bench.steps {
        let start = Instant::now();
        model.weights_mut().zero_grad();
        let loss = model.forward_backward(&ids[..tokens], &ids[1..], &sequences, 1.0 / tokens as f32);
        let norm = Optimizer::grad_norm(model.weights());
        let clip = Clip { norm: &norm, max: train.clip_norm };
        optimizer.update(model.weights_mut(), step as u64 + 1, 3e-4, Some(clip));
        // As the trainer does: a step ends when its loss is known.
        last = loss.read().mean();
        norm.read();
        times.push(start.elapsed().as_secs_f64());
    }
    let seconds = median(&mut times[WARMUP..]);
    let device_mib = match bench.device {
        Device::Cpu => None,
        device => Some(
            before
                .zip(device.available_memory())
                .map_or(0.0, |(before, now)| before.saturating_sub(now) as f64 / (1 << 20) as f64),
        ),
    };
    let parameters = model.weights().count();
    let attention = bench.model.attention.design().cost(bench.model.hidden_size).flops_per_context_token;
    let attention = (bench.model.num_hidden_layers as u64 * attention) as f64 * bench.seq as f64 / 2.0;
    let flops = tokens as f64 * (6.0 * parameters as f64 + 3.0 * attention);
    Ok(TrainBenchResult {
        device: bench.device.describe(),
        device_mib,
        model_tflops: flops / seconds / 1e12,
        loss: last,
        attention: bench.model.attention.kind(),
        params: model.weights().count(),
        batch: bench.batch,
        seq: bench.seq,
        tokens_per_s: tokens as f64 / seconds,
        step_ms: 1e3 * seconds,
        peak_rss_mib: memory.peak_mib().or_else(peak_rss_mib),
        threads: rayon::current_num_threads(),
    })
}

/// The median of `values`, which are not empty.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}
