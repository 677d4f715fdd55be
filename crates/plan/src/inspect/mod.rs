//! What a model holds and costs, layer by layer and in all.

mod counts;
mod shape;
mod text;

pub use shape::Shape;
pub(crate) use text::time;

use crate::{
    PlanError, Target, Workload,
    hardware::Hardware,
    roofline::{Bound, Traffic, bound},
    symbols::{self, Symbols},
};
use counts::Counts;
use keyfold_core::{Cost, Plane};
use keyfold_model::{ModelConfig, attention::AttentionConfig, weights::Part};
use serde::Serialize;
use std::collections::BTreeMap;

/// Tokens that a layer's attention sees, itself included; `None`: all.
pub fn window(attention: &AttentionConfig) -> Option<u64> {
    let window = match attention {
        AttentionConfig::Mha(config) => config.window,
        AttentionConfig::Mqa(config) => config.window,
        AttentionConfig::Gqa(config) => config.window,
        AttentionConfig::Mfa(config) => config.window,
        AttentionConfig::Mla(_) | AttentionConfig::MfaKr(_) | AttentionConfig::Tpa(_) => None,
    };
    window.map(|window| window as u64)
}

/// FLOPs per context token as the Step-3 report counts them (arXiv 2507.19427, section 4): every cached row goes whole
/// into the scores and, where keys are also values, whole into the weighted sum; rotations on read are not counted. Only
/// designs whose keys and values share planes differ from [`Cost::flops_per_context_token`].
fn whole_row_flops(attention: &AttentionConfig, cost: &Cost) -> u64 {
    match attention {
        AttentionConfig::Mla(_) | AttentionConfig::MfaKr(_) => {
            4 * attention.design().heads() as u64 * cost.elements_per_context_token
        }
        _ => cost.flops_per_context_token,
    }
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Layer {
    /// Its number, from 0.
    pub layer: usize,
    /// The attention's kind.
    pub attention: &'static str,
    /// What is cached for each token.
    pub planes: Vec<Plane>,
    /// Bytes of that.
    pub kv_bytes_per_token: u64,
    /// Tokens the layer sees; all without it.
    pub window: Option<u64>,
    /// Query heads.
    pub heads: usize,
    /// Factorization rank per head.
    pub rank_per_head: usize,
    /// Shared latent subspace dimension.
    pub shared_latent_dim: usize,
    /// Heads times rank per head.
    pub total_effective_rank: usize,
    /// The same figures as formulas.
    pub symbols: Symbols,
    /// FLOPs of a decoded token's projections.
    pub attention_linear_flops: u64,
    /// FLOPs of its scores and weighted sum at the workload's context.
    pub attention_core_flops: u64,
    /// Core FLOPs per byte of cache, as the Step-3 report counts.
    pub arithmetic_intensity: f64,
    /// Parameters by part.
    pub params: BTreeMap<Part, u64>,
    /// Parameters.
    pub params_total: u64,
    /// Those that a token passes.
    pub params_active: u64,
}

/// FLOPs of one decoded token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Flops {
    /// Projections of the attention.
    pub attention_linear: u64,
    /// Scores and weighted sums.
    pub attention_core: u64,
    /// MLPs, experts that a token passes, routers.
    pub mlp: u64,
    /// The output head.
    pub head: u64,
}

/// A model explained.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// The target's name.
    pub name: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Token ids.
    pub vocab_size: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// What is decoded.
    pub workload: Workload,
    /// Parameters.
    pub params_total: u64,
    /// Those that a token passes: chosen experts alone, and no embedding, which is looked up, unless it is the head too.
    pub params_active: u64,
    /// Parameters by part.
    pub params: BTreeMap<Part, u64>,
    /// Active parameters by part.
    pub params_active_by_part: BTreeMap<Part, u64>,
    /// Bytes of cache for each token, all layers.
    pub kv_bytes_per_token: u64,
    /// Bytes of cache of a sequence of the workload's context: windowed layers keep their window alone.
    pub kv_bytes_of_context: u64,
    /// FLOPs of one decoded token at the context.
    pub flops_per_token: u64,
    /// The same by part.
    pub flops: Flops,
    /// Core FLOPs per byte of cache read, as the Step-3 report counts: rows whole in both products.
    pub arithmetic_intensity: f64,
    /// Core FLOPs per byte of cache read, as computed.
    pub arithmetic_intensity_computed: f64,
    /// The decoding's limits on hardware.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hardware: Option<Bound>,
    /// What is to be kept in mind.
    pub notes: Vec<String>,
    /// The layers.
    pub layers: Vec<Layer>,
    #[serde(skip)]
    traffic: Traffic,
}

impl Inspection {
    /// Adds the limits of decoding on `hardware`.
    #[must_use]
    pub fn on(mut self, hardware: &Hardware) -> Self {
        self.hardware = Some(bound(&self.traffic, &self.workload, hardware));
        self
    }

    /// What decoding moves and computes.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Total effective rank of the layers' attention, the mean over layers.
    pub fn total_effective_rank(&self) -> u64 {
        let sum: usize = self.layers.iter().map(|layer| layer.total_effective_rank).sum();
        (sum / self.layers.len().max(1)) as u64
    }

    /// The page for a terminal.
    pub fn to_text(&self) -> String {
        text::page(self)
    }
}

/// Explains `target` decoding `workload`.
///
/// # Errors
/// When a figure does not fit 64 bits.
pub fn inspect(target: &Target, workload: &Workload) -> Result<Inspection, PlanError> {
    let config = &target.config;
    let counts = Counts::of(config)?;
    let mut layers = Vec::with_capacity(config.num_hidden_layers);
    let (mut core, mut whole_rows, mut cache, mut kv, mut linear) = (0u128, 0u128, 0u128, 0u64, 0u64);
    for index in 0..config.num_hidden_layers {
        let layer = layer(config, index, workload, &counts)?;
        core += u128::from(layer.attention_core_flops);
        linear = linear.checked_add(layer.attention_linear_flops).ok_or(PlanError::Overflow("FLOPs"))?;
        let bytes = seen(layer.window, workload) * u128::from(layer.kv_bytes_per_token);
        cache += bytes;
        whole_rows += (layer.arithmetic_intensity * bytes as f64).round() as u128;
        kv = kv.checked_add(layer.kv_bytes_per_token).ok_or(PlanError::Overflow("bytes of cache"))?;
        layers.push(layer);
    }
    let flops = Flops {
        attention_linear: linear,
        attention_core: fit(core, "FLOPs")?,
        mlp: fit(2 * counts.mlp_matrices(config), "FLOPs")?,
        head: fit(2 * u128::from(counts.head), "FLOPs")?,
    };
    let all = [flops.attention_linear, flops.attention_core, flops.mlp, flops.head];
    let kv_bytes_of_context = fit(cache, "bytes of cache")?;
    let mut notes = Vec::new();
    if workload.context > config.max_position_embeddings as u64 {
        notes.push(format!(
            "the context of {} is beyond the model's longest sequence, {}",
            workload.context, config.max_position_embeddings
        ));
    }
    let (params_total, params_active) = (counts.sum(&counts.total), counts.sum(&counts.active));
    let experts = counts.total.get(&Part::Experts).copied().unwrap_or(0);
    let streamed = params_active - counts.active.get(&Part::Experts).copied().unwrap_or(0);
    let routed = config.moe.as_ref().filter(|_| experts > 0);
    let traffic = Traffic {
        parameters: params_total,
        streamed,
        experts,
        expert_share: routed.map_or(1.0, |moe| moe.top_k as f64 / moe.experts as f64),
        linear_flops: (flops.attention_linear as f64) + flops.mlp as f64 + flops.head as f64,
        core_flops: flops.attention_core as f64,
        cache_bytes: kv_bytes_of_context as f64,
    };
    Ok(Inspection {
        name: target.name.clone(),
        hidden_size: config.hidden_size,
        vocab_size: config.vocab_size,
        max_position_embeddings: config.max_position_embeddings,
        workload: *workload,
        params_total,
        params_active,
        params: counts.total.clone(),
        params_active_by_part: counts.active.clone(),
        kv_bytes_per_token: kv,
        kv_bytes_of_context,
        flops_per_token: fit(all.into_iter().map(u128::from).sum(), "FLOPs")?,
        flops,
        arithmetic_intensity: whole_rows as f64 / cache as f64,
        arithmetic_intensity_computed: core as f64 / cache as f64,
        hardware: None,
        notes,
        layers,
        traffic,
    })
}

fn fit(value: u128, what: &'static str) -> Result<u64, PlanError> {
    u64::try_from(value).map_err(|_| PlanError::Overflow(what))
}

/// Tokens of the context that a layer sees.
fn seen(window: Option<u64>, workload: &Workload) -> u128 {
    u128::from(window.map_or(workload.context, |window| window.min(workload.context)))
}

fn layer(
    config: &ModelConfig,
    index: usize,
    workload: &Workload,
    counts: &Counts,
) -> Result<Layer, PlanError> {
    let attention = config.layer_attention(index);
    let params = counts.layers.get(index).cloned().unwrap_or_default();
    let own = params.get(&Part::Attention).copied().unwrap_or(0);
    let shape = Shape::with(&attention, config.hidden_size, own, own)?;
    let layout = attention.design().cache_layout().map_err(PlanError::from)?;
    let window = window(&attention);
    let core = seen(window, workload) * u128::from(shape.cost.flops_per_context_token);
    let bytes = shape.elements_per_token as f64 * workload.kv_dtype.bytes();
    let active = |(part, count): (&Part, &u64)| counts.active_of(config, *part, *count);
    Ok(Layer {
        layer: index,
        attention: attention.kind(),
        planes: shape.planes,
        kv_bytes_per_token: workload.kv_dtype.bytes_per_token(&layout),
        window,
        heads: shape.capacity.heads,
        rank_per_head: shape.capacity.rank_per_head,
        shared_latent_dim: shape.capacity.shared_latent_dim,
        total_effective_rank: shape.capacity.total_effective_rank(),
        symbols: symbols::of(&attention),
        attention_linear_flops: shape.cost.linear_flops,
        attention_core_flops: fit(core, "FLOPs")?,
        arithmetic_intensity: whole_row_flops(&attention, &shape.cost) as f64 / bytes,
        params_total: params.values().sum(),
        params_active: params.iter().map(active).sum(),
        params,
    })
}

#[cfg(test)]
mod tests;
