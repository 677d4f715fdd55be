//! How fast a model can decode at best: what has to be read and computed against what hardware can read and compute.
//!
//! A step has two phases, which follow one another in every layer: linear maps, which read weights once for all sequences,
//! and the attention's core, which reads every sequence's cache. Each takes the longer of its reading and its computing.
//! Weights are of 16 bits; activations, communication and everything else cost nothing, so that times are lower bounds.

use crate::{KvDtype, Workload, hardware::Hardware};
use serde::Serialize;

/// What decoding one token moves and computes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// All parameters.
    pub parameters: u64,
    /// Parameters that are read in every step.
    pub streamed: u64,
    /// Parameters of routed experts, of which a step reads those that any of its tokens chose.
    pub experts: u64,
    /// Part of the experts that one token chooses.
    pub expert_share: f64,
    /// FLOPs of linear maps.
    pub linear_flops: f64,
    /// FLOPs of scores and weighted sums.
    pub core_flops: f64,
    /// Bytes of one sequence's cache.
    pub cache_bytes: f64,
}

/// Bytes of a weight.
const WEIGHT_BYTES: f64 = 2.0;

/// What a step waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Reading weights.
    WeightRead,
    /// Computing linear maps.
    LinearCompute,
    /// Reading the cache.
    CacheRead,
    /// Computing the attention's core.
    AttentionCompute,
}

impl Limit {
    /// In words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::WeightRead => "reading weights",
            Self::LinearCompute => "computing linear maps",
            Self::CacheRead => "reading the cache",
            Self::AttentionCompute => "computing attention",
        }
    }
}

/// A step at some batch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Step {
    /// Sequences.
    pub batch: u64,
    /// Seconds of the step: a token for every sequence.
    pub seconds: f64,
    /// Seconds of linear maps.
    pub linear_seconds: f64,
    /// Seconds of the attention's core.
    pub attention_seconds: f64,
    /// Tokens per second, all sequences.
    pub tokens_per_s: f64,
    /// What takes the most of it.
    pub limit: Limit,
}

/// The limits of decoding on hardware.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bound {
    /// The hardware.
    pub name: String,
    /// How many of it: the fewest that hold the weights and one sequence, with nothing lost between them.
    pub devices: u64,
    /// Bytes of the weights.
    pub weight_bytes: f64,
    /// FLOPs per byte above which computing, not the memory, limits the attention's core.
    pub ridge: f64,
    /// The step asked for.
    pub step: Step,
    /// Seconds per decoded token: the step's over its batch.
    pub seconds_per_token: f64,
    /// Most sequences whose caches fit beside the weights; none where the memory is not known.
    pub largest_batch: Option<u64>,
    /// A step of that many.
    pub largest: Option<Step>,
}

/// The limits of `traffic` on `hardware`.
pub fn bound(traffic: &Traffic, workload: &Workload, hardware: &Hardware) -> Bound {
    let weight_bytes = traffic.parameters as f64 * WEIGHT_BYTES;
    let least = weight_bytes + traffic.cache_bytes;
    let devices = hardware.memory.map_or(1, |memory| (least / memory).ceil().max(1.0) as u64);
    let largest_batch = hardware.memory.map(|memory| {
        ((devices as f64 * memory - weight_bytes) / traffic.cache_bytes).floor().max(0.0) as u64
    });
    let at = |batch| step(traffic, batch, workload.kv_dtype, hardware, devices);
    let asked = at(workload.batch);
    Bound {
        name: hardware.name.clone(),
        devices,
        weight_bytes,
        ridge: hardware.flops(workload.kv_dtype) / hardware.bandwidth,
        step: asked,
        seconds_per_token: asked.seconds / workload.batch as f64,
        largest_batch,
        largest: largest_batch.filter(|batch| *batch > 0).map(at),
    }
}

fn step(traffic: &Traffic, batch: u64, kv: KvDtype, hardware: &Hardware, devices: u64) -> Step {
    let (many, all) = (batch as f64, devices as f64);
    // Tokens choose independently, so each expert is left alone by all of them with this probability.
    let untouched = (1.0 - traffic.expert_share).powf(many);
    let weights = traffic.streamed as f64 + traffic.experts as f64 * (1.0 - untouched);
    let read = weights * WEIGHT_BYTES / (hardware.bandwidth * all);
    let compute = many * traffic.linear_flops / (hardware.bf16_flops * all);
    let cache_read = many * traffic.cache_bytes / (hardware.bandwidth * all);
    let core = many * traffic.core_flops / (hardware.flops(kv) * all);
    let seconds = read.max(compute) + cache_read.max(core);
    let linear = if read >= compute { (read, Limit::WeightRead) } else { (compute, Limit::LinearCompute) };
    let attention =
        if cache_read >= core { (cache_read, Limit::CacheRead) } else { (core, Limit::AttentionCompute) };
    Step {
        batch,
        seconds,
        linear_seconds: linear.0,
        attention_seconds: attention.0,
        tokens_per_s: many / seconds,
        limit: if linear.0 >= attention.0 { linear.1 } else { attention.1 },
    }
}
