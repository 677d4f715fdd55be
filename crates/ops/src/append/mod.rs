//! New tokens on their way into a cache: queries and keys are rotated, keys and values stored.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::{
    attention::Heads,
    dispatch::by_device,
    fp8,
    indices::Indices,
    rope::{self, Heads as RopeHeads, Positions, RopeTable},
    scatter,
};
use keyfold_tensor::Tensor;

/// Where new tokens stand, and how that shows.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// `[tokens]`: of each within its sequence.
    pub positions: &'a Indices,
    /// `[tokens]`: the row of the cache that each goes to.
    pub rows: &'a Indices,
    /// Rotates all channels of the queries' heads, and of the keys' unless they are cached as they are; none without RoPE.
    pub rope: Option<&'a RopeTable>,
    /// Whether keys are cached as they are.
    pub raw_keys: bool,
    /// Of a cache in 8 bits: see [`fp8::Rows`].
    pub scales: Option<&'a Tensor>,
}

/// Rotates `q` in place, and writes `k`, rotated, and `v` to their rows of the cache. What is in `k` afterwards is not
/// specified.
///
/// # Shapes
/// `q` tokens x (m heads of d), `k` tokens x (g heads of d), adjacent heads; `v` [tokens, e], of g heads; `keys` [places, g * d], `values`
/// [places, e].
///
/// # Panics
/// When the shapes do not fit, a row is not in the cache, or a position not in the table.
pub fn append(
    q: Heads<'_>,
    k: Heads<'_>,
    v: Option<&Tensor>,
    places: Places<'_>,
    keys: &mut Tensor,
    values: Option<&mut Tensor>,
) {
    let tokens = q.tensor.rows();
    q.check("q", tokens, (q.count, q.width));
    k.check("k", tokens, (k.count, q.width));
    assert_eq!(v.is_some(), values.is_some(), "append: values and a plane for them");
    let pair = v.zip(values);
    by_device!(q.tensor, parts(q, k, pair, places, keys), cuda::append(q, k, pair, places, keys));
}

/// The ops that it is made of, one after the other.
fn parts(
    q: Heads<'_>,
    k: Heads<'_>,
    values: Option<(&Tensor, &mut Tensor)>,
    places: Places<'_>,
    keys: &mut Tensor,
) {
    if let Some(table) = places.rope {
        let rotate = |heads: Heads<'_>| {
            let at = Positions::Of(places.positions);
            let places = RopeHeads { count: heads.count, stride: heads.stride, offset: 0 };
            rope::apply(&mut heads.tensor.clone(), places, table, at, false);
        };
        rotate(q);
        if !places.raw_keys {
            rotate(k);
        }
    }
    put(k.tensor, places.rows, keys, places.scales, fp8::sharing(k.width));
    if let Some((v, plane)) = values {
        put(v, places.rows, plane, places.scales, fp8::sharing(value_width(v, k.count)));
    }
}

/// Channels of a head of `v`, which has as many heads as the keys.
fn value_width(v: &Tensor, kv_heads: usize) -> usize {
    v.cols() / kv_heads.max(1)
}

/// New rows of a plane of a cache, which is one head; in 8 bits where it has `scales`.
///
/// # Panics
/// As [`scatter::rows`] and [`fp8::store`].
pub fn write(x: &Tensor, at: &Indices, plane: &mut Tensor, scales: Option<&Tensor>) {
    put(x, at, plane, scales, fp8::sharing(x.cols()));
}

/// As [`write`], with one scale for `sharing` columns.
fn put(x: &Tensor, at: &Indices, plane: &mut Tensor, scales: Option<&Tensor>, sharing: usize) {
    match scales {
        Some(scales) => fp8::store(x, at, fp8::Rows { values: plane, scales }, sharing),
        None => scatter::rows(x, at, plane),
    }
}
