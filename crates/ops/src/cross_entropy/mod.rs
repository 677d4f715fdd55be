//! The last linear map of a language model and its cross-entropy, a chunk of tokens at a time: the logits of all tokens
//! never exist at once, and their gradient takes the place of the logits.
//!
//! Letters: T tokens, D model width, V vocabulary. The loss of token t is `-log softmax(w x_t)[target_t]`, in nats.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::dispatch::by_device;
use keyfold_tensor::Tensor;

/// The target of a token that has no loss and no gradient.
pub const IGNORE: u32 = u32::MAX;

/// A weighted sum of token losses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// Sum of weight times loss, in nats.
    pub sum: f64,
    /// Sum of the weights.
    pub weight: f64,
}

impl Loss {
    /// The weighted mean, in nats per token; NaN when nothing was counted.
    pub fn mean(self) -> f64 {
        self.sum / self.weight
    }
}

impl std::ops::AddAssign for Loss {
    fn add_assign(&mut self, other: Self) {
        self.sum += other.sum;
        self.weight += other.weight;
    }
}

/// A loss that a device may still be computing.
#[derive(Clone, Debug)]
pub struct Pending {
    known: Loss,
    /// The sum on a device, an f64 in the place of two f32.
    sum: Option<Tensor>,
}

impl Pending {
    #[cfg(feature = "cuda")]
    fn device(sum: Tensor, weight: f64) -> Self {
        Self { known: Loss { sum: f64::NAN, weight }, sum: Some(sum) }
    }

    /// The loss. Waits for a device.
    pub fn read(&self) -> Loss {
        let Some(sum) = &self.sum else { return self.known };
        let bytes = sum.to_bytes();
        let sum = bytes.first_chunk().map_or(f64::NAN, |bytes| f64::from_le_bytes(*bytes));
        Loss { sum, ..self.known }
    }
}

impl From<Loss> for Pending {
    fn from(known: Loss) -> Self {
        Self { known, sum: None }
    }
}

/// The loss, and the gradients of `loss_scale * loss.sum` by `x` and `w`.
///
/// `loss_scale` is usually one over the number of tokens of the optimizer step. A token whose target is [`IGNORE`] or
/// whose weight is 0 has no loss and no gradient.
///
/// # Shapes
/// - x: `[T, D]`
/// - w: `[V, D]`
/// - targets: `[T]`, below V or [`IGNORE`]
/// - weights: `[T]`; none: all 1
/// - dx: `[T, D]`, overwritten
/// - dw: `[V, D]`, f32, added to
///
/// # Panics
/// When the shapes do not fit or a target is not in the vocabulary.
pub fn forward_backward(
    x: &Tensor,
    w: &Tensor,
    targets: &[u32],
    weights: Option<&[f32]>,
    loss_scale: f32,
    dx: &mut Tensor,
    dw: &mut Tensor,
) -> Pending {
    check("cross_entropy", x, w, targets, weights);
    assert_eq!((dx.rows(), dx.cols()), (x.rows(), x.cols()), "cross_entropy: dx is not shaped like x");
    assert_eq!((dw.rows(), dw.cols()), (w.rows(), w.cols()), "cross_entropy: dw is not shaped like w");
    let tokens = Tokens { targets, weights };
    by_device!(
        x,
        cpu::forward_backward(x, w, tokens, loss_scale, dx, dw).into(),
        cuda::forward_backward(x, w, tokens, loss_scale, dx, dw)
    )
}

/// The loss alone, and on request what happened at each token.
///
/// `per_token` receives the unweighted losses in nats, 0 where nothing is counted. `correct` receives whether the target
/// is the argmax, of equal logits the first; false where nothing is counted.
///
/// # Shapes
/// - x: `[T, D]`
/// - w: `[V, D]`, f32 or bf16
/// - targets: `[T]`, below V or [`IGNORE`]
/// - weights: `[T]`; none: all 1
/// - per_token, correct: `[T]`
///
/// # Panics
/// When the shapes do not fit or a target is not in the vocabulary.
pub fn evaluate(
    x: &Tensor,
    w: &Tensor,
    targets: &[u32],
    weights: Option<&[f32]>,
    per_token: Option<&mut [f32]>,
    correct: Option<&mut [bool]>,
) -> Loss {
    check("cross_entropy::evaluate", x, w, targets, weights);
    let len = |name: &str, len: usize| assert_eq!(len, targets.len(), "cross_entropy::evaluate: {name}");
    if let Some(per_token) = &per_token {
        len("per_token", per_token.len());
    }
    if let Some(correct) = &correct {
        len("correct", correct.len());
    }
    let tokens = Tokens { targets, weights };
    by_device!(
        x,
        cpu::evaluate(x, w, tokens, per_token, correct),
        cuda::evaluate(x, w, tokens, per_token, correct)
    )
}

/// What is asked of each token.
#[derive(Clone, Copy)]
struct Tokens<'a> {
    targets: &'a [u32],
    weights: Option<&'a [f32]>,
}

impl Tokens<'_> {
    /// Target and weight, unless the token counts for nothing.
    #[inline(always)]
    fn at(self, token: usize) -> Option<(usize, f32)> {
        let weight = self.weights.map_or(1.0, |weights| weights[token]);
        let target = self.targets[token];
        (target != IGNORE && weight != 0.0).then_some((target as usize, weight))
    }
}

fn check(op: &str, x: &Tensor, w: &Tensor, targets: &[u32], weights: Option<&[f32]>) {
    assert_eq!(w.cols(), x.cols(), "{op}: width of w and of x");
    assert_eq!(targets.len(), x.rows(), "{op}: one target per token");
    assert!(weights.is_none_or(|weights| weights.len() == x.rows()), "{op}: one weight per token");
    let vocabulary = w.rows();
    let known = |target: &u32| *target == IGNORE || (*target as usize) < vocabulary;
    assert!(targets.iter().all(known), "{op}: a target is not below {vocabulary}");
}
