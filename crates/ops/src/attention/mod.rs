//! Causal softmax attention, blockwise: scores never exist as a whole.
//!
//! Training ([`forward`], [`backward`]) and inference over a cache ([`cached`], [`tpa_cached`]) share the kernels.
//! Online softmax as in FlashAttention-2 (arXiv 2307.08691), ALiBi as in arXiv 2108.12409.

mod cached;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
pub mod paged;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

pub use cached::{Cached, Paged, Plans, Sequence, TpaCached, cached, tpa_cached};

use crate::dispatch::by_device;
use keyfold_core::DType;
use keyfold_tensor::{Device, Tensor};
use pulp::Arch;

/// Heads inside token rows: channel c of head h of token t is at column `h * stride + c` of row t.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    /// A row per token.
    pub tensor: &'a Tensor,
    /// Number of heads.
    pub count: usize,
    /// Channels of a head.
    pub width: usize,
    /// Columns from one head to the next.
    pub stride: usize,
}

impl<'a> Heads<'a> {
    /// `count` heads of equal width that together are the columns of `tensor`.
    ///
    /// # Panics
    /// When the columns cannot be split evenly.
    pub fn packed(tensor: &'a Tensor, count: usize) -> Self {
        assert!(
            count > 0 && tensor.cols().is_multiple_of(count),
            "attention: {} columns cannot be split into {count} heads",
            tensor.cols()
        );
        let width = tensor.cols() / count;
        Self { tensor, count, width, stride: width }
    }

    #[track_caller]
    pub(crate) fn check(&self, name: &str, rows: usize, like: (usize, usize)) {
        let Self { tensor, count, width, stride } = *self;
        assert_eq!(tensor.rows(), rows, "attention: rows of {name}");
        assert_eq!((count, width), like, "attention: heads of {name} and their width");
        assert!(count > 0 && width > 0, "attention: {name} has no columns");
        assert!(
            (count - 1) * stride + width <= tensor.cols() && (count == 1 || stride >= width),
            "attention: {count} heads of {width} columns, {stride} apart, in a {name} of {} columns",
            tensor.cols()
        );
    }
}

/// What the tensors of an attention leave open.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    /// Sequences; each is `seq` consecutive token rows.
    pub batch: usize,
    /// Tokens of a sequence.
    pub seq: usize,
    /// Factor on the dot products of queries and keys.
    pub scale: f32,
    /// `[query heads]`: slope m of each, adds `-m * distance` to its scores.
    pub alibi: Option<&'a [f32]>,
    /// `[batch * seq]`: the first key each query may see, counted within its own sequence.
    pub doc_starts: Option<&'a [u32]>,
}

/// The first key that each of `queries` tokens may see, within its own sequence, when tokens see the last `window` keys
/// of their document: what [`Shape::doc_starts`] is then.
pub fn window_starts(doc_starts: Option<&[u32]>, queries: usize, seq: usize, window: usize) -> Vec<u32> {
    let start = |token: usize| {
        let first = (token % seq + 1).saturating_sub(window) as u32;
        doc_starts.map_or(first, |starts| first.max(starts[token]))
    };
    (0..queries).map(start).collect()
}

/// A gradient to be written, or added to what is there.
#[derive(Clone, Copy, Debug)]
pub struct Gradient<'a> {
    /// Where it goes, laid out as what it is the gradient of.
    pub heads: Heads<'a>,
    /// Add instead of overwriting.
    pub accumulate: bool,
}

/// Attention of every token to itself and the tokens before it in its sequence (and document).
///
/// Query head h uses kv head `h / (q.count / k.count)`.
///
/// # Shapes
/// `q` tokens x (m heads of d), `k` tokens x (g of d), `v` tokens x (g of e), `out` tokens x (m of e), all f32 (on a GPU
/// f32 or bf16, and computed in bf16) with
/// `tokens = batch * seq`; `lse` `[batch * m, seq]` receives the natural log-sum-exp of the scores.
///
/// # Panics
/// On shapes or element types other than these, `m` not a multiple of `g`, or a document that starts after its token.
pub fn forward(
    q: Heads<'_>,
    k: Heads<'_>,
    v: Heads<'_>,
    shape: &Shape<'_>,
    out: Heads<'_>,
    lse: &mut Tensor,
) {
    check_training(q, k, v, shape, lse);
    out.check("out", q.tensor.rows(), (q.count, v.width));
    check_f32(&[("out", out.tensor)]);
    if q.tensor.rows() == 0 {
        return;
    }
    by_device!(
        q.tensor,
        cpu::forward(Arch::new(), q, k, v, shape, out, lse),
        cuda::forward(q, k, v, shape, 0, out, lse)
    );
}

/// Gradients of [`forward`] from its inputs, `out` and `lse`.
///
/// # Shapes
/// As in [`forward`]; `d_out` as `out`, `dq`, `dk`, `dv` as `q`, `k`, `v`. `dk` and `dv` may overlap, kv head by kv head,
/// when both accumulate.
///
/// # Panics
/// As [`forward`].
#[allow(clippy::too_many_arguments)]
pub fn backward(
    q: Heads<'_>,
    k: Heads<'_>,
    v: Heads<'_>,
    out: Heads<'_>,
    d_out: Heads<'_>,
    lse: &Tensor,
    shape: &Shape<'_>,
    dq: Gradient<'_>,
    dk: Gradient<'_>,
    dv: Gradient<'_>,
) {
    check_training(q, k, v, shape, lse);
    let rows = q.tensor.rows();
    out.check("out", rows, (q.count, v.width));
    d_out.check("d_out", rows, (q.count, v.width));
    for (name, gradient, like) in [("dq", dq, q), ("dk", dk, k), ("dv", dv, v)] {
        gradient.heads.check(name, rows, (like.count, like.width));
        check_f32(&[(name, gradient.heads.tensor)]);
    }
    check_f32(&[("out", out.tensor), ("d_out", d_out.tensor)]);
    if q.tensor.rows() == 0 {
        return;
    }
    by_device!(
        q.tensor,
        cpu::backward(Arch::new(), cpu::Inputs { q, k, v, out, d_out, lse }, shape, dq, dk, dv),
        cuda::backward(q, k, v, out, d_out, lse, shape, dq, dk, dv)
    );
}

#[track_caller]
fn check_training(q: Heads<'_>, k: Heads<'_>, v: Heads<'_>, shape: &Shape<'_>, lse: &Tensor) {
    let tokens = shape.batch * shape.seq;
    q.check("q", tokens, (q.count, q.width));
    k.check("k", tokens, (k.count, q.width));
    v.check("v", tokens, (k.count, v.width));
    check_f32(&[("q", q.tensor), ("k", k.tensor), ("v", v.tensor), ("lse", lse)]);
    check_groups(q.count, k.count, shape.alibi);
    assert_eq!((lse.rows(), lse.cols()), (shape.batch * q.count, shape.seq), "attention: shape of lse");
    if let Some(starts) = shape.doc_starts {
        assert_eq!(starts.len(), tokens, "attention: a document start per token was expected");
        for (token, start) in starts.iter().enumerate() {
            let query = token % shape.seq;
            assert!(*start as usize <= query, "attention: the document of query {query} starts at {start}");
        }
    }
}

#[track_caller]
fn check_groups(heads: usize, kv_heads: usize, alibi: Option<&[f32]>) {
    assert!(
        heads.is_multiple_of(kv_heads),
        "attention: {heads} query heads cannot share {kv_heads} kv heads"
    );
    if let Some(slopes) = alibi {
        assert_eq!(slopes.len(), heads, "attention: a slope per query head was expected");
    }
}

#[track_caller]
fn check_f32(tensors: &[(&str, &Tensor)]) {
    // Kernels of a GPU take bf16 as well, and check for themselves.
    for (name, tensor) in tensors.iter().filter(|(_, tensor)| tensor.device() == Device::Cpu) {
        assert_eq!(tensor.dtype(), DType::F32, "attention: element type of {name}");
    }
}
