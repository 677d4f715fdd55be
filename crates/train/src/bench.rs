//! Speed of a training step on random tokens: what `keyfold bench train` reports.

use crate::{
    config::{OptimizerConfig, TrainConfig},
    memory::{PeakScope, peak_rss_mib},
    optimizer::Optimizer,
};
use keyfold_model::{LanguageModel, ModelConfig, ModelError, Sequences};
use keyfold_tensor::Arena;
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
}

/// Steps before the clock starts: memory is taken from the system in the first.
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
}

/// Times whole training steps: forward, backward, gradient norm and AdamW.
///
/// # Errors
/// When the model cannot be made.
pub fn bench_train(bench: &TrainBench) -> Result<TrainBenchResult, ModelError> {
    let memory = PeakScope::start();
    let arena = Arena::new();
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
    for step in 0..WARMUP + bench.steps {
        let start = Instant::now();
        model.weights_mut().zero_grad();
        model.forward_backward(&ids[..tokens], &ids[1..], &sequences, 1.0 / tokens as f32);
        let norm = Optimizer::grad_norm(model.weights());
        let scale = (train.clip_norm / (norm + 1e-6)).min(1.0);
        optimizer.update(model.weights_mut(), step as u64 + 1, 3e-4, scale);
        times.push(start.elapsed().as_secs_f64());
    }
    let seconds = median(&mut times[WARMUP..]);
    Ok(TrainBenchResult {
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
