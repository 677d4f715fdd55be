//! Designs of equal size within a cache budget: MFA, MFA-KR, MLA, GQA and TPA over their widths, ranks and heads.
//!
//! Every candidate has the target's layers and, within a tolerance, its parameters: the attention takes from half to five
//! quarters of what it takes in the target, and the MLP's width, or the experts', takes up the rest. What no other
//! candidate beats in cache, total effective rank, shared latent dimension and decoding time at once is the front: rank alone
//! hardly depends on the width that heads share, and would end at widths that hold nothing. Local layers stay local, which only
//! some designs can be; a window of all layers is not kept.

mod candidates;
mod text;

use crate::{
    PlanError, Source, Target, Workload,
    hardware::Hardware,
    inspect::{Inspection, Shape, inspect},
};
use candidates::Budget;
use keyfold_core::units::grouped;
use keyfold_model::{
    Matcher, ModelConfig,
    attention::{AttentionConfig, DESIGNS},
};
use rayon::prelude::*;
use serde::Serialize;

/// What is searched for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Largest cache in bytes per token, all layers.
    pub kv_budget: u64,
    /// Largest deviation from the target's parameters: 0.01 is one percent.
    pub tolerance: f64,
    /// What is decoded, where.
    pub workload: Workload,
    /// The hardware.
    pub hardware: Hardware,
    /// Which design of the front to choose.
    pub goal: Goal,
}

/// Which design of the front to choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// The widest shared latent of those with nearly the largest total effective rank: three quarters of it.
    #[default]
    Balanced,
    /// The largest total effective rank, whatever the latent.
    MaxTer,
    /// The fastest whose total effective rank is at least the target's.
    MinCost,
}

/// The part of the largest total effective rank that counts as nearly as large.
pub const NEARLY: f64 = 0.75;

/// A design with its figures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Design {
    /// The attention's kind.
    pub attention: &'static str,
    /// Its sizes in words.
    pub shape: String,
    /// Bytes of cache per token, all layers.
    pub kv_bytes_per_token: u64,
    /// Total effective rank of a layer.
    pub total_effective_rank: u64,
    /// Shared latent subspace dimension of a layer.
    pub shared_latent_dim: u64,
    /// Parameters.
    pub params_total: u64,
    /// Active ones.
    pub params_active: u64,
    /// Relative deviation from the target's parameters, signed.
    pub deviation: f64,
    /// Width of the MLPs, or of the experts where there are any.
    pub mlp_width: usize,
    /// FLOPs of a decoded token.
    pub flops_per_token: u64,
    /// Least seconds of a step of the workload.
    pub step_seconds: f64,
    /// Most tokens per second of the workload.
    pub tokens_per_s: f64,
    /// Most tokens per second at the largest batch that fits.
    pub largest_tokens_per_s: Option<f64>,
    /// Whether it is the chosen one.
    pub chosen: bool,
    /// The model.
    pub model: ModelConfig,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The target's name.
    pub target: String,
    /// The largest cache that was allowed.
    pub kv_budget: u64,
    /// What is decoded.
    pub workload: Workload,
    /// The hardware.
    pub hardware: Hardware,
    /// How many designs were looked at.
    pub considered: usize,
    /// How the chosen one was chosen.
    pub goal: Goal,
    /// The target itself.
    pub reference: Design,
    /// The front, by cache and then rank.
    pub front: Vec<Design>,
    /// What would be chosen of each kind alone: kinds differ in more than the front's figures.
    pub best_of_kind: Vec<Design>,
}

/// A design before its MLP is known.
struct Draft {
    attention: AttentionConfig,
    kv: u64,
    rank: u64,
    latent: u64,
    /// Least seconds of a layer's attention alone.
    seconds: f64,
}

/// Searches designs like `target`.
///
/// # Errors
/// When an option is out of range, or no design fits.
pub fn search(target: &Target, request: &Request) -> Result<Plan, PlanError> {
    if !(request.tolerance.is_finite() && (0.0..=0.5).contains(&request.tolerance)) {
        return Err(PlanError::value("--params-within", "0 % to 50 %", 100.0 * request.tolerance));
    }
    if request.kv_budget == 0 {
        return Err(PlanError::value("--kv-budget", "at least 1 byte per token", 0));
    }
    let matcher = Matcher::new(&target.config)?;
    let bits = request.workload.kv_dtype.bits();
    let elements = request.kv_budget.saturating_mul(8) / bits / target.config.num_hidden_layers as u64;
    let attentions = candidates::attentions(&target.config, &matcher, &Budget { elements });
    let drafts: Vec<Draft> =
        attentions.into_iter().filter_map(|attention| draft(target, request, attention)).collect();
    let considered = drafts.len();
    let fitting: Vec<&Draft> = drafts.iter().filter(|draft| draft.kv <= request.kv_budget).collect();
    let (mut kinds, mut refused) = (Vec::new(), None);
    for (kind, _) in DESIGNS {
        let own = fitting.iter().copied().filter(|draft| draft.attention.kind() == *kind).collect();
        let (designs, error) = finished(own, |draft| {
            let matched = matcher.finish(&draft.attention, request.tolerance)?;
            design(target, request, matched.config, matched.deviation)
        });
        kinds.push(designs);
        refused = refused.or(error);
    }
    let fitting = kinds.concat();
    let score = |design: &Design| {
        let (rank, latent) = (design.total_effective_rank as f64, design.shared_latent_dim as f64);
        [design.kv_bytes_per_token as f64, -rank, -latent, design.step_seconds]
    };
    let mut front = undominated(&fitting, score);
    front.sort_by_key(|design| (design.kv_bytes_per_token, design.total_effective_rank));
    if front.is_empty() {
        let least = drafts.iter().min_by_key(|draft| draft.kv);
        let nearest = match (refused, least) {
            (Some(error), _) => error.to_string(),
            (None, Some(least)) => {
                format!(
                    "the smallest of {considered} takes {} ({})",
                    grouped(least.kv),
                    least.attention.kind()
                )
            }
            (None, None) => "no width is that small".to_owned(),
        };
        let parameters = matcher.target() as u64;
        return Err(PlanError::Budget { budget: request.kv_budget, parameters, nearest });
    }
    let reference = design(target, request, target.config.clone(), 0.0)?;
    let chosen = choose(&front, request.goal, reference.total_effective_rank)?;
    front[chosen].chosen = true;
    let wanted = reference.total_effective_rank;
    let best_of_kind = kinds.iter().filter_map(|kind| {
        let best = choose(kind, request.goal, wanted).ok()?;
        Some(Design { chosen: kind[best].model == front[chosen].model, ..kind[best].clone() })
    });
    let best_of_kind = best_of_kind.collect();
    Ok(Plan {
        target: target.name.clone(),
        kv_budget: request.kv_budget,
        workload: request.workload,
        hardware: request.hardware.clone(),
        considered,
        goal: request.goal,
        reference,
        front,
        best_of_kind,
    })
}

/// The promising ones of `drafts` as whole models, and the last reason why one could not be made. What such a one had
/// beaten is looked at instead.
fn finished(
    mut drafts: Vec<&Draft>,
    finish: impl Fn(&Draft) -> Result<Design, PlanError> + Sync,
) -> (Vec<Design>, Option<PlanError>) {
    let score =
        |draft: &&Draft| [draft.kv as f64, -(draft.rank as f64), -(draft.latent as f64), draft.seconds];
    let (mut designs, mut refused) = (Vec::new(), None);
    let mut known: Vec<*const Draft> = Vec::new();
    loop {
        let promising = undominated(&drafts, score);
        let fresh: Vec<&Draft> =
            promising.into_iter().filter(|draft| !known.contains(&std::ptr::from_ref(*draft))).collect();
        if fresh.is_empty() {
            return (designs, refused);
        }
        let results: Vec<_> = fresh.par_iter().map(|draft| finish(draft)).collect();
        for (draft, result) in fresh.into_iter().zip(results) {
            match result {
                Ok(design) => {
                    known.push(draft);
                    designs.push(design);
                }
                Err(error) => {
                    drafts.retain(|other| !std::ptr::eq(*other, draft));
                    refused = Some(error);
                }
            }
        }
    }
}

/// What is known of an attention alone; nothing where its sizes make none.
fn draft(target: &Target, request: &Request, attention: AttentionConfig) -> Option<Draft> {
    let shape = Shape::of(&attention, target.config.hidden_size).ok()?;
    if let Some(local) = &target.config.local {
        attention.windowed(local)?;
    }
    let (work, hardware) = (&request.workload, &request.hardware);
    let layout = attention.design().cache_layout().ok()?;
    let kv = work.kv_dtype.bytes_per_token(&layout).checked_mul(target.config.num_hidden_layers as u64)?;
    let (batch, context) = (work.batch as f64, work.context as f64);
    let cost = &shape.cost;
    let cache = context * cost.elements_per_context_token as f64 * work.kv_dtype.bytes();
    let core = context * cost.flops_per_context_token as f64 / hardware.flops(work.kv_dtype);
    let seconds = batch * (cache / hardware.bandwidth).max(core)
        + batch * cost.linear_flops as f64 / hardware.bf16_flops;
    let (rank, latent) = (shape.capacity.total_effective_rank(), shape.capacity.shared_latent_dim);
    Some(Draft { kv, rank: rank as u64, latent: latent as u64, seconds, attention })
}

fn design(
    target: &Target,
    request: &Request,
    model: ModelConfig,
    deviation: f64,
) -> Result<Design, PlanError> {
    let target = Target { name: target.name.clone(), source: Source::Preset, config: model };
    let told: Inspection = inspect(&target, &request.workload)?.on(&request.hardware);
    let rank = told.total_effective_rank();
    let bound = told.hardware.ok_or(PlanError::Overflow("the hardware's figures"))?;
    let model = target.config;
    Ok(Design {
        attention: model.attention.kind(),
        shape: shape(&model.attention),
        kv_bytes_per_token: told.kv_bytes_per_token,
        total_effective_rank: rank,
        shared_latent_dim: model.attention.design().capacity().shared_latent_dim as u64,
        params_total: told.params_total,
        params_active: told.params_active,
        deviation,
        mlp_width: model.moe.as_ref().map_or(model.intermediate_size, |moe| moe.expert_size),
        flops_per_token: told.flops_per_token,
        step_seconds: bound.step.seconds,
        tokens_per_s: bound.step.tokens_per_s,
        largest_tokens_per_s: bound.largest.map(|step| step.tokens_per_s),
        chosen: false,
        model,
    })
}

/// The sizes of an attention in words: `26 heads, head_dim 256`.
fn shape(attention: &AttentionConfig) -> String {
    let value = serde_json::to_value(attention).unwrap_or_default();
    let sizes = value.as_object().into_iter().flatten();
    let sizes = sizes.filter(|(key, value)| value.is_u64() && *key != "heads" && *key != "window");
    let mut sizes: Vec<String> = sizes.map(|(key, value)| format!("{key} {value}")).collect();
    // In one order, whichever the JSON library keeps.
    sizes.sort_unstable();
    format!("{} heads, {}", attention.design().heads(), sizes.join(", "))
}

/// The items that no other one beats in one score without losing in another; of equals the first.
fn undominated<T: Clone>(items: &[T], score: impl Fn(&T) -> [f64; 4]) -> Vec<T> {
    let scores: Vec<[f64; 4]> = items.iter().map(score).collect();
    let beats = |a: usize, b: usize| {
        let pairs = || scores[a].iter().zip(&scores[b]);
        pairs().all(|(a, b)| a <= b) && (a < b || pairs().any(|(a, b)| a < b))
    };
    let kept = (0..items.len()).filter(|item| !(0..items.len()).any(|other| beats(other, *item)));
    kept.map(|item| items[item].clone()).collect()
}

/// The chosen one's place.
fn choose(front: &[Design], goal: Goal, wanted: u64) -> Result<usize, PlanError> {
    let most = front.iter().map(|design| design.total_effective_rank).max().unwrap_or(0);
    let able = |design: &Design| match goal {
        Goal::Balanced => design.total_effective_rank as f64 >= NEARLY * most as f64,
        Goal::MaxTer => true,
        Goal::MinCost => design.total_effective_rank >= wanted,
    };
    let able = front.iter().enumerate().filter(|(_, design)| able(design));
    let best = able.max_by(|(_, a), (_, b)| {
        let widest = a.shared_latent_dim.cmp(&b.shared_latent_dim);
        let largest = a.total_effective_rank.cmp(&b.total_effective_rank);
        let fastest = b.step_seconds.total_cmp(&a.step_seconds);
        match goal {
            Goal::Balanced => widest.then(largest).then(fastest),
            Goal::MaxTer => largest.then(widest).then(fastest),
            Goal::MinCost => fastest.then(widest).then(largest),
        }
    });
    best.map(|(place, _)| place).ok_or(PlanError::Rank { wanted, found: most })
}

impl Plan {
    /// The chosen design.
    pub fn chosen(&self) -> &Design {
        self.front.iter().find(|design| design.chosen).unwrap_or(&self.reference)
    }
}

#[cfg(test)]
mod tests;
