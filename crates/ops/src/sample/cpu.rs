//! Weights `e^((logit - max) / temperature)` at full speed; only tokens that can survive the filters are sorted.

use super::{Rng, Sampler};
use crate::simd::{Kernel, exp, for_lanes, launch};
use pulp::Simd;
use std::{cell::Cell, cmp::Ordering, ops::Range};

#[derive(Clone, Copy)]
struct Candidate {
    token: u32,
    weight: f32,
}

impl Candidate {
    /// Likelier first, of equally likely ones the one with the smaller id.
    fn order(&self, other: &Self) -> Ordering {
        other.weight.total_cmp(&self.weight).then(self.token.cmp(&other.token))
    }
}

thread_local! {
    /// Kept from call to call, so that a decoding step allocates nothing.
    static SCRATCH: Cell<(Vec<f32>, Vec<Candidate>)> = const { Cell::new((Vec::new(), Vec::new())) };
}

/// `max` is the largest logit, which is finite; the sampler is valid and not greedy.
pub(super) fn sample(sampler: &Sampler, logits: &[f32], max: f32, rng: &mut Rng) -> u32 {
    let (mut weights, mut candidates) = SCRATCH.take();
    weigh(sampler, logits, max, &mut weights);
    let point = rng.uniform();
    let all = sampler.top_k.is_none() && sampler.top_p >= 1.0 && sampler.min_p <= 0.0;
    let entries = || {
        weights.iter().enumerate().map(|(token, weight)| Candidate { token: token as u32, weight: *weight })
    };
    let token = if all {
        draw(entries(), point)
    } else {
        candidates.clear();
        candidates.extend(entries().filter(|candidate| candidate.weight > 0.0));
        filter(sampler, &mut candidates);
        draw(candidates.iter().copied(), point)
    };
    SCRATCH.set((weights, candidates));
    token
}

/// The weights of all tokens: 1 for the likeliest.
pub(super) fn weigh(sampler: &Sampler, logits: &[f32], max: f32, weights: &mut Vec<f32>) {
    weights.clear();
    weights.resize(logits.len(), 0.0);
    let out = Place(weights.as_mut_ptr());
    launch(1, 1, &Weigh { logits, max, temperature: sampler.temperature, out });
}

fn filter(sampler: &Sampler, candidates: &mut Vec<Candidate>) {
    if let Some(k) = sampler.top_k.filter(|k| *k < candidates.len()) {
        candidates.select_nth_unstable_by(k - 1, Candidate::order);
        candidates.truncate(k);
    }
    if sampler.top_p < 1.0 {
        let total: f64 = candidates.iter().map(|candidate| f64::from(candidate.weight)).sum();
        let wanted = f64::from(sampler.top_p) * total;
        // All weights below this one together are less than what the set may lack: none of them is in it, none needs to
        // be sorted.
        let least = (total - wanted) / candidates.len() as f64;
        candidates.retain(|candidate| f64::from(candidate.weight) >= least);
        candidates.sort_unstable_by(Candidate::order);
        let mut held = 0.0;
        let enough = candidates.iter().position(|candidate| {
            held += f64::from(candidate.weight);
            held >= wanted
        });
        candidates.truncate(enough.map_or(candidates.len(), |last| last + 1));
    } else {
        // The order decides which number draws which token: it must not depend on how top-k was found.
        candidates.sort_unstable_by_key(|candidate| candidate.token);
    }
    // The likeliest token has the weight 1.
    candidates.retain(|candidate| candidate.weight >= sampler.min_p);
}

/// The token at which the running sum of weights passes the share `point` of the total.
fn draw(candidates: impl Iterator<Item = Candidate> + Clone, point: f64) -> u32 {
    let total: f64 = candidates.clone().map(|candidate| f64::from(candidate.weight)).sum();
    let mut left = point * total;
    let mut chosen = 0;
    // Rounding may leave a rest after the last token: then that one it is.
    for candidate in candidates.filter(|candidate| candidate.weight > 0.0) {
        chosen = candidate.token;
        left -= f64::from(candidate.weight);
        if left < 0.0 {
            break;
        }
    }
    chosen
}

struct Place(*mut f32);
// SAFETY: written by the one thread that runs the kernel.
unsafe impl Sync for Place {}

struct Weigh<'a> {
    logits: &'a [f32],
    max: f32,
    temperature: f32,
    /// As long as `logits`.
    out: Place,
}

impl Kernel for Weigh<'_> {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, _: Range<usize>) {
        let (max, temperature) = (simd.splat_f32s(self.max), simd.splat_f32s(self.temperature));
        let (logits, out) = (self.logits.as_ptr(), self.out.0);
        for_lanes(
            simd,
            self.logits.len(),
            #[inline(always)]
            // SAFETY: both are `logits.len()` long.
            |lanes| unsafe {
                // Divided, not multiplied by the inverse: that may be infinite.
                let x = simd.div_f32s(simd.sub_f32s(lanes.load(simd, logits), max), temperature);
                lanes.store(simd, out, exp(simd, x));
            },
        );
    }
}
