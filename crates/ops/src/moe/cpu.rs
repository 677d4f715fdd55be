//! Routing is a few hundred scores per token: plain loops over tokens. Rows are scattered with vectors.

use super::{Assigned, GroupScore, Router, Scoring};
use crate::{
    parallel::for_each_row_block,
    simd::{Kernel, Rows, block_rows, for_lanes, launch, sum},
};
use keyfold_tensor::Tensor;
use pulp::Simd;
use std::{cmp::Ordering, ops::Range};

/// Tokens routed by one task.
const BLOCK: usize = 64;

pub(super) fn route(
    router: &Router,
    logits: &Tensor,
    bias: Option<&Tensor>,
    chosen: &mut [u32],
    weights: &mut Tensor,
) {
    let k = router.top_k;
    // SAFETY: nobody writes to the bias meanwhile.
    let bias = bias.map(|bias| unsafe { bias.row(0) });
    let chosen = Shared(chosen.as_mut_ptr());
    for_each_row_block(logits.rows(), BLOCK, |rows| {
        let mut choice = Choice::new(router, logits.cols());
        for row in rows {
            // SAFETY: rows are disjoint, and `chosen` holds k places for each.
            let (logits, weights, chosen) = unsafe {
                (logits.row(row), weights.row_mut(row), std::slice::from_raw_parts_mut(chosen.at(row * k), k))
            };
            score(router.scoring, logits, &mut choice.scores);
            choice.choose(bias, chosen);
            let mut factor = router.scaling;
            if router.normalise {
                factor /= chosen.iter().map(|e| choice.scores[*e as usize]).sum::<f32>() + NEAR_ZERO;
            }
            for (weight, expert) in weights.iter_mut().zip(chosen) {
                *weight = factor * choice.scores[*expert as usize];
            }
        }
    });
}

/// Keeps a sum of vanishing scores from dividing by zero, as DeepSeek's code has it.
const NEAR_ZERO: f32 = 1e-20;

pub(super) fn route_backward(
    router: &Router,
    logits: &Tensor,
    chosen: &[u32],
    d_weights: &Tensor,
    d_logits: &mut Tensor,
) {
    let k = router.top_k;
    for_each_row_block(logits.rows(), BLOCK, |rows| {
        let mut scores = vec![0.0; logits.cols()];
        for row in rows {
            // SAFETY: rows are disjoint.
            let (logits, d_weights, d_scores) =
                unsafe { (logits.row(row), d_weights.row(row), d_logits.row_mut(row)) };
            let chosen = &chosen[row * k..][..k];
            score(router.scoring, logits, &mut scores);
            d_scores.fill(0.0);
            let (mut factor, mut shared) = (router.scaling, 0.0);
            if router.normalise {
                let total = chosen.iter().map(|e| scores[*e as usize]).sum::<f32>() + NEAR_ZERO;
                factor /= total;
                shared =
                    chosen.iter().zip(d_weights).map(|(e, d)| d * scores[*e as usize]).sum::<f32>() / total;
            }
            for (expert, d_weight) in chosen.iter().zip(d_weights) {
                d_scores[*expert as usize] = factor * (d_weight - shared);
            }
            match router.scoring {
                Scoring::Sigmoid => d_scores.iter_mut().zip(&scores).for_each(|(d, s)| *d *= s * (1.0 - s)),
                Scoring::Softmax => {
                    let mean: f32 = d_scores.iter().zip(&scores).map(|(d, s)| d * s).sum();
                    d_scores.iter_mut().zip(&scores).for_each(|(d, s)| *d = s * (*d - mean));
                }
            }
        }
    });
}

fn score(scoring: Scoring, logits: &[f32], scores: &mut [f32]) {
    match scoring {
        Scoring::Sigmoid => {
            scores.iter_mut().zip(logits).for_each(|(s, x)| *s = 1.0 / (1.0 + (-x).exp()));
        }
        Scoring::Softmax => {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0;
            for (s, x) in scores.iter_mut().zip(logits) {
                *s = (x - max).exp();
                sum += *s;
            }
            scores.iter_mut().for_each(|s| *s /= sum);
        }
    }
}

/// Memory for the choice of one token.
struct Choice<'a> {
    router: &'a Router,
    scores: Vec<f32>,
    rated: Vec<f32>,
    order: Vec<u32>,
    groups: Vec<(f32, usize)>,
}

impl<'a> Choice<'a> {
    fn new(router: &'a Router, experts: usize) -> Self {
        Self {
            router,
            scores: vec![0.0; experts],
            rated: vec![0.0; experts],
            order: Vec::with_capacity(experts),
            groups: Vec::with_capacity(router.groups),
        }
    }

    /// The best experts by score plus bias, best first; of equals the first.
    fn choose(&mut self, bias: Option<&[f32]>, chosen: &mut [u32]) {
        let Self { router, scores, rated, order, groups } = self;
        rated.copy_from_slice(scores);
        if let Some(bias) = bias {
            rated.iter_mut().zip(bias).for_each(|(score, bias)| *score += bias);
        }
        let size = rated.len() / router.groups;
        order.clear();
        if router.top_groups == router.groups {
            order.extend(0..rated.len() as u32);
        } else {
            groups.clear();
            groups.extend(rated.chunks_exact(size).map(|group| rate(router.group_score, group)).zip(0..));
            groups.sort_by(|a, b| falling(a.0, b.0));
            for (_, group) in &groups[..router.top_groups] {
                order.extend((group * size) as u32..((group + 1) * size) as u32);
            }
            order.sort_unstable();
        }
        let better = |a: &u32, b: &u32| falling(rated[*a as usize], rated[*b as usize]).then(a.cmp(b));
        if chosen.len() < order.len() {
            order.select_nth_unstable_by(chosen.len(), better);
            order.truncate(chosen.len());
        }
        order.sort_unstable_by(better);
        chosen.copy_from_slice(order);
    }
}

fn falling(a: f32, b: f32) -> Ordering {
    b.total_cmp(&a)
}

fn rate(rule: GroupScore, group: &[f32]) -> f32 {
    let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for score in group {
        if *score > first {
            (first, second) = (*score, first);
        } else if *score > second {
            second = *score;
        }
    }
    match rule {
        GroupScore::BestTwo if group.len() > 1 => first + second,
        _ => first,
    }
}

/// A slice that tasks write to at disjoint places.
struct Shared(*mut u32);

// SAFETY: tasks write disjoint places.
unsafe impl Sync for Shared {}

impl Shared {
    /// # Safety
    /// `index` lies within the slice.
    unsafe fn at(&self, index: usize) -> *mut u32 {
        // SAFETY: the caller's.
        unsafe { self.0.add(index) }
    }
}

pub(super) fn scatter(assigned: &Assigned, y: &Tensor, weights: &Tensor, out: &mut Tensor) {
    let kernel =
        Scatter { assigned, y: Rows::of(y), weights: Rows::of(weights), out: Rows::of(out), width: y.cols() };
    launch(y.rows(), block_rows(y.cols()), &kernel);
}

pub(super) fn scatter_backward(
    assigned: &Assigned,
    y: &Tensor,
    weights: &Tensor,
    d_out: &Tensor,
    dy: &mut Tensor,
    d_weights: &mut Tensor,
) {
    let kernel = Backward {
        assigned,
        y: Rows::of(y),
        weights: Rows::of(weights),
        d_out: Rows::of(d_out),
        dy: Rows::of(dy),
        d_weights: Rows::of(d_weights),
        width: y.cols(),
    };
    launch(y.rows(), block_rows(y.cols()), &kernel);
}

struct Scatter<'a> {
    assigned: &'a Assigned,
    y: Rows,
    weights: Rows,
    out: Rows,
    width: usize,
}

impl Kernel for Scatter<'_> {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>) {
        for row in rows {
            let (token, slot) = (self.assigned.tokens[row] as usize, self.assigned.slots[row] as usize);
            // SAFETY: the mod's asserts; a token has one row of an expert, so that nobody else writes to its output.
            let (y, out, weight) =
                unsafe { (self.y.row(row), self.out.row(token), *self.weights.row(token).add(slot)) };
            let weight = simd.splat_f32s(weight);
            for_lanes(
                simd,
                self.width,
                #[inline(always)]
                // SAFETY: as above.
                |lanes| unsafe {
                    let before = lanes.load(simd, out);
                    lanes.store(simd, out, simd.mul_add_e_f32s(weight, lanes.load(simd, y), before));
                },
            );
        }
    }
}

struct Backward<'a> {
    assigned: &'a Assigned,
    y: Rows,
    weights: Rows,
    d_out: Rows,
    dy: Rows,
    d_weights: Rows,
    width: usize,
}

impl Kernel for Backward<'_> {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>) {
        for row in rows {
            let (token, slot) = (self.assigned.tokens[row] as usize, self.assigned.slots[row] as usize);
            // SAFETY: the mod's asserts; a row belongs to one task, a weight to one row.
            unsafe {
                let (y, dy, d_out) = (self.y.row(row), self.dy.row(row), self.d_out.row(token));
                let weight = simd.splat_f32s(*self.weights.row(token).add(slot));
                let d_weight = sum(
                    simd,
                    self.width,
                    #[inline(always)]
                    |sum, lanes| simd.mul_add_e_f32s(lanes.load(simd, d_out), lanes.load(simd, y), sum),
                );
                *self.d_weights.row(token).add(slot) = d_weight;
                for_lanes(
                    simd,
                    self.width,
                    #[inline(always)]
                    |lanes| lanes.store(simd, dy, simd.mul_f32s(weight, lanes.load(simd, d_out))),
                );
            }
        }
    }
}
