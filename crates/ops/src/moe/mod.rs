//! Mixture of experts: which experts a token goes to and with what weight, and the weighted sum of what they answer.
//!
//! Shapes: T tokens, E experts, k experts per token, H hidden. The experts themselves are linear maps; the rows of one
//! expert are gathered with [`crate::embedding::forward`].

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::dispatch::by_device;
use keyfold_tensor::Tensor;

/// How logits become scores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scoring {
    /// Softmax over all experts.
    #[default]
    Softmax,
    /// The sigmoid of each (DeepSeek-V3).
    Sigmoid,
}

/// How a group of experts is rated where only some groups are open to a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GroupScore {
    /// By its best expert (DeepSeek-V2).
    #[default]
    Best,
    /// By the sum of its two best (DeepSeek-V3).
    BestTwo,
}

/// The rule by which tokens choose experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Router {
    /// Experts per token k.
    pub top_k: usize,
    /// How logits become scores.
    pub scoring: Scoring,
    /// Whether the chosen scores are divided by their sum.
    pub normalise: bool,
    /// Factor on the weights.
    pub scaling: f32,
    /// Groups that the experts are divided into, in order.
    pub groups: usize,
    /// Groups open to a token.
    pub top_groups: usize,
    /// How groups are rated.
    pub group_score: GroupScore,
}

/// Chooses `top_k` experts for every token, best first: their numbers go to `chosen`, their weights to `weights`.
/// `bias` is added to scores for the choice alone (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).
///
/// # Shapes
/// - logits: `[T, E]`, bias: `[1, E]`
/// - chosen: `T * k`, weights: `[T, k]`
///
/// # Panics
/// When the shapes do not fit, or the open groups hold fewer than k experts.
pub fn route(
    router: &Router,
    logits: &Tensor,
    bias: Option<&Tensor>,
    chosen: &mut [u32],
    weights: &mut Tensor,
) {
    check(router, logits, chosen, weights);
    if let Some(bias) = bias {
        assert_eq!((bias.rows(), bias.cols()), (1, logits.cols()), "moe::route: a bias per expert");
    }
    by_device!(
        logits,
        cpu::route(router, logits, bias, chosen, weights),
        cuda::route(router, logits, bias, chosen, weights)
    );
}

/// `d_logits`, overwritten, from the gradient of the weights. The choice has no gradient.
///
/// # Shapes
/// As in [`route`]; d_weights: `[T, k]`, d_logits: `[T, E]`.
///
/// # Panics
/// When the shapes do not fit.
pub fn route_backward(
    router: &Router,
    logits: &Tensor,
    chosen: &[u32],
    d_weights: &Tensor,
    d_logits: &mut Tensor,
) {
    check(router, logits, chosen, d_weights);
    assert_eq!((d_logits.rows(), d_logits.cols()), (logits.rows(), logits.cols()), "moe::route: d_logits");
    by_device!(
        logits,
        cpu::route_backward(router, logits, chosen, d_weights, d_logits),
        cuda::route_backward(router, logits, chosen, d_weights, d_logits)
    );
}

/// The tokens of one expert: row r of its input is token `tokens[r]`, whose choice number `slots[r]` it is.
#[derive(Clone, Debug, Default)]
pub struct Assigned {
    /// Token of each row.
    pub tokens: Vec<u32>,
    /// Which of the token's k choices it is.
    pub slots: Vec<u32>,
}

/// The tokens of each of `experts` experts, in order, from [`route`]'s `chosen`.
pub fn assign(chosen: &[u32], top_k: usize, experts: usize) -> Vec<Assigned> {
    let mut all = vec![Assigned::default(); experts];
    for (index, expert) in chosen.iter().enumerate() {
        let assigned = &mut all[*expert as usize];
        assigned.tokens.push((index / top_k) as u32);
        assigned.slots.push((index % top_k) as u32);
    }
    all
}

/// `out[token] += weight * y[row]` for the rows of one expert.
///
/// # Shapes
/// - y: `[rows, H]`, weights: `[T, k]`, out: `[T, H]`
///
/// # Panics
/// When the shapes do not fit.
pub fn scatter(assigned: &Assigned, y: &Tensor, weights: &Tensor, out: &mut Tensor) {
    check_rows("moe::scatter", assigned, y, weights, out);
    by_device!(y, cpu::scatter(assigned, y, weights, out), cuda::scatter(assigned, y, weights, out));
}

/// Gradients of [`scatter`]: `dy`, overwritten, and the entries of `d_weights` that the rows used, overwritten.
///
/// # Shapes
/// As in [`scatter`]; dy: `[rows, H]`, d_weights: `[T, k]`, d_out: `[T, H]`.
///
/// # Panics
/// When the shapes do not fit.
pub fn scatter_backward(
    assigned: &Assigned,
    y: &Tensor,
    weights: &Tensor,
    d_out: &Tensor,
    dy: &mut Tensor,
    d_weights: &mut Tensor,
) {
    check_rows("moe::scatter_backward", assigned, y, weights, d_out);
    check_rows("moe::scatter_backward", assigned, dy, d_weights, d_out);
    by_device!(
        y,
        cpu::scatter_backward(assigned, y, weights, d_out, dy, d_weights),
        cuda::scatter_backward(assigned, y, weights, d_out, dy, d_weights)
    );
}

#[track_caller]
fn check(router: &Router, logits: &Tensor, chosen: &[u32], weights: &Tensor) {
    let (tokens, experts) = (logits.rows(), logits.cols());
    assert_eq!((weights.rows(), weights.cols()), (tokens, router.top_k), "moe::route: a weight per choice");
    assert_eq!(chosen.len(), tokens * router.top_k, "moe::route: an expert per choice");
    assert!(
        router.groups > 0 && experts.is_multiple_of(router.groups) && router.top_groups <= router.groups,
        "moe::route: {} of {} groups of {experts} experts",
        router.top_groups,
        router.groups
    );
    assert!(
        router.top_k > 0 && router.top_k <= router.top_groups * (experts / router.groups),
        "moe::route: {} choices among {} of {} groups of {experts} experts",
        router.top_k,
        router.top_groups,
        router.groups
    );
}

#[track_caller]
fn check_rows(op: &str, assigned: &Assigned, y: &Tensor, weights: &Tensor, out: &Tensor) {
    let rows = assigned.tokens.len();
    assert_eq!((y.rows(), y.cols()), (rows, out.cols()), "{op}: a row per assigned token");
    assert_eq!(weights.rows(), out.rows(), "{op}: weights for every token");
    assert_eq!(assigned.slots.len(), rows, "{op}: a slot per assigned token");
    let fits =
        |(token, slot): (&u32, &u32)| (*token as usize) < out.rows() && (*slot as usize) < weights.cols();
    assert!(assigned.tokens.iter().zip(&assigned.slots).all(fits), "{op}: a token or slot out of range");
}
