//! Attention of a few new tokens per sequence over a cache whose rows lie in pages: decoding, with several tokens a
//! sequence for speculation and for the ends of prompts.
//!
//! One contract for all designs: many query heads on few wide rows (MFA, MQA, absorbed MLA) as well as groups of heads
//! (GQA, MHA); values in a plane of their own or among the channels of the key (MFA-KR, absorbed MLA), which are then read
//! once; keys rotated as they are read; keys and values that are sums of products (TPA), which are never formed. FlashAttention-2 (arXiv 2307.08691) with the keys of a sequence split among
//! multiprocessors, as Flash-Decoding does; parts are joined by their log-sum-exp.
//!
//! [`Batch`] holds what all layers of a step have in common. On a GPU it is a plan made there, from lengths that lie there.

#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod plan;
mod reference;
#[cfg(test)]
mod tests;

use super::Heads;
use crate::{dispatch::by_device, fp8, indices::Indices, rope::RopeTable};
use keyfold_core::{DType, SCALE_BLOCK};
use keyfold_tensor::{Arena, Tensor};

/// New tokens of a sequence at most.
pub const MAX_TOKENS: usize = 4;

/// Rows at the end of a sequence that may have been written by the op right before this one; on a GPU older ones are read while
/// that op still runs, which must be one that waits for those before it (docs/cuda.md).
pub const RECENT: usize = 2 * MAX_TOKENS;

/// What the attention of all layers looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Query heads.
    pub heads: usize,
    /// Heads of keys (and values); query head h uses `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Channels of a key.
    pub width: usize,
    /// Channels of a value.
    pub value_width: usize,
    /// Whether values are the first channels of their key instead of a plane of their own.
    pub shared: bool,
    /// Whether keys are rotated as they are read. Values stay as they are.
    pub rotate: bool,
    /// Whether the cache is in 8 bits ([`DType::Fp8`]) instead of bf16.
    pub fp8: bool,
    /// Tokens of a page: a power of two.
    pub page: usize,
    /// New tokens of each sequence, at most [`MAX_TOKENS`].
    pub tokens: usize,
    /// Keys that a token sees, its own included; all before it by default.
    pub window: Option<usize>,
    /// Of tensor-product attention (TPA, arXiv 2501.06425) the terms R of a key, and of a value: head h's key is
    /// `1/R sum_r a[r, h] b[r]`, `width` is that of a b, and the planes of [`Cache`] hold the b of R terms.
    pub factors: Option<usize>,
}

impl Shape {
    fn check(&self) {
        let Self { heads, kv_heads, width, value_width, shared, page, tokens, .. } = *self;
        assert!(kv_heads > 0 && heads > 0, "paged attention: no heads");
        assert!(
            heads.is_multiple_of(kv_heads),
            "paged attention: {heads} query heads cannot share {kv_heads} kv heads"
        );
        assert!(width > 0 && value_width > 0, "paged attention: heads without channels");
        assert!(
            !shared || value_width <= width,
            "paged attention: values of {value_width} channels among the {width} of a key"
        );
        assert!(
            page.is_power_of_two(),
            "paged attention: pages of {page} tokens, a power of two was expected"
        );
        assert!(
            (1..=MAX_TOKENS).contains(&tokens),
            "paged attention: {tokens} new tokens a sequence, 1 to {MAX_TOKENS} were expected"
        );
        assert_ne!(self.window, Some(0), "paged attention: a window without keys");
        let plain = (kv_heads, width, shared, self.rotate) == (1, value_width, false, false);
        assert!(
            self.factors.is_none_or(|rank| rank > 0 && plain),
            "paged attention: factors of one kv head, with values as wide as keys in a plane of their own, were expected"
        );
    }

    /// Rows that a key has in its plane.
    #[cfg(feature = "cuda")]
    fn rank(&self) -> usize {
        self.factors.unwrap_or(1)
    }
}

/// The cache of a layer. Row `page * tokens_of_a_page + i` of its tensors is token i of that page.
#[derive(Clone, Copy, Debug)]
pub struct Cache<'a> {
    /// On a GPU bf16, or 8 bits.
    pub k: Heads<'a>,
    /// As `k`; none when values are the first channels of the key.
    pub v: Option<Heads<'a>>,
    /// For [`Shape::fp8`]: see [`fp8::Rows`].
    pub scales: Option<&'a Tensor>,
    /// Factor on the dot products of queries and keys; positive.
    pub scale: f32,
    /// For [`Shape::rotate`]: half-split pairs of all channels of a key.
    pub rotate: Option<&'a RopeTable>,
    /// For [`Shape::factors`]: a of the terms of keys and of values, R pieces of a column per query head each.
    pub factors: Option<[Heads<'a>; 2]>,
    /// `[1, heads]` f32: slope m of each query head, adds `-m * distance` to its scores.
    pub alibi: Option<&'a Tensor>,
}

/// Sequences of one step: how long they are, where their pages lie, and, on a GPU, who reads what.
#[derive(Debug)]
pub struct Batch {
    shape: Shape,
    lengths: Vec<u32>,
    /// `[sequences, most pages]`.
    tables: Vec<u32>,
    longest: usize,
    highest: Option<u32>,
    #[cfg(feature = "cuda")]
    device: Option<cuda::Batch>,
}

impl Batch {
    /// Sequences of `lengths` tokens, the new ones included, with the pages `tables`, `[sequences, most pages]` in any
    /// order; entries behind a sequence's last page are ignored. `arena` is that of the cache's device.
    ///
    /// # Panics
    /// On shapes that do not fit, sequences with fewer tokens than are new (but none at all is allowed), or without pages
    /// for all their tokens.
    pub fn new(arena: &Arena, shape: Shape, lengths: &[u32], tables: &[u32]) -> Self {
        shape.check();
        let mut batch = Self {
            shape,
            lengths: vec![0; lengths.len()],
            // Others, so that all are new.
            tables: tables.iter().map(|page| !page).collect(),
            longest: 0,
            highest: None,
            #[cfg(feature = "cuda")]
            device: cuda::Batch::new(arena, &shape, lengths, tables.len()),
        };
        #[cfg(not(feature = "cuda"))]
        let _ = arena;
        batch.update(lengths, tables);
        batch
    }

    /// Other lengths and pages, in the same memory: what was captured with this batch sees them.
    ///
    /// # Panics
    /// As [`Batch::new`], or when the numbers of sequences or of pages differ.
    pub fn update(&mut self, lengths: &[u32], tables: &[u32]) {
        assert_eq!(lengths.len(), self.lengths.len(), "paged attention: sequences");
        assert_eq!(tables.len(), self.tables.len(), "paged attention: entries of the page tables");
        let most = tables.len().checked_div(lengths.len()).unwrap_or(0);
        assert_eq!(tables.len(), most * lengths.len(), "paged attention: page tables of different lengths");
        self.highest = None;
        for (sequence, &length) in lengths.iter().enumerate() {
            let tokens = length as usize;
            assert!(
                tokens == 0 || tokens >= self.shape.tokens,
                "paged attention: sequence {sequence} has {length} tokens, but {} new ones",
                self.shape.tokens
            );
            let pages = tokens.div_ceil(self.shape.page);
            assert!(
                pages <= most,
                "paged attention: sequence {sequence} needs {pages} pages, its table has {most}"
            );
            let used = &tables[sequence * most..][..pages];
            self.highest = self.highest.max(used.iter().copied().max());
        }
        self.longest = lengths.iter().copied().max().unwrap_or(0) as usize;
        let moved = self.tables != tables;
        self.lengths.copy_from_slice(lengths);
        self.tables.copy_from_slice(tables);
        #[cfg(feature = "cuda")]
        if let Some(device) = &mut self.device {
            device.update(&self.shape, lengths, moved.then_some(tables));
        }
        #[cfg(not(feature = "cuda"))]
        let _ = moved;
    }

    /// Pages that a sequence has at most.
    pub fn most_pages(&self) -> usize {
        self.tables.len().checked_div(self.lengths.len()).unwrap_or(0)
    }

    /// Plans anew from the lengths that lie on the device. On the host there is nothing to plan.
    pub fn plan(&self) {
        #[cfg(feature = "cuda")]
        if let Some(device) = &self.device {
            device.plan(&self.shape);
        }
    }

    /// Makes every sequence one token longer on the device, `positions` and `rows` (of the cache) those of the new tokens.
    /// On the host nothing happens, and what the host knows of the lengths stays as it is.
    ///
    /// # Panics
    /// When a step has several tokens, or the numbers of sequences differ.
    pub fn advance(&self, positions: &Indices, rows: &Indices) {
        assert_eq!(self.shape.tokens, 1, "paged attention: tokens of a step that goes on by itself");
        for (name, indices) in [("positions", positions), ("rows", rows)] {
            assert_eq!(indices.len(), self.lengths.len(), "paged attention: number of {name}");
        }
        #[cfg(feature = "cuda")]
        if let Some(device) = &self.device {
            device.advance(&self.shape, positions, rows);
        }
    }

    /// Whether the plan on the device is the one that [`plan::Plan`] makes of the same lengths; none on the host.
    pub(crate) fn plans_alike(&self) -> Option<bool> {
        #[cfg(feature = "cuda")]
        return self.device.as_ref().map(|device| device.plans_alike(&self.shape, &self.lengths));
        #[cfg(not(feature = "cuda"))]
        None
    }

    /// What it is for.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Tokens of each sequence, the new ones included.
    pub fn lengths(&self) -> &[u32] {
        &self.lengths
    }

    /// Pages of `sequence`, those of its tokens only.
    pub fn pages(&self, sequence: usize) -> &[u32] {
        let most = self.tables.len() / self.lengths.len();
        &self.tables[sequence * most..][..(self.lengths[sequence] as usize).div_ceil(self.shape.page)]
    }
}

/// Attention of the new tokens, whose own rows are in the cache already.
///
/// Token t of T in a sequence of n sees the first `n - T + t + 1` keys, or the last [`Shape::window`] of these. A sequence without
/// tokens gets zeros. Of the rows of a sequence only the last [`RECENT`] may be the work of the op right before this one. On the host
/// this is the slow twin in double precision; decoding there has its own path, [`super::cached`].
///
/// # Shapes
/// `q` `[sequences * tokens, heads * width]`, rotated already; `out` `[sequences * tokens, heads * value_width]`; `lse`
/// `[sequences * tokens, heads]` f32, if wanted, the natural log-sum-exp of the scores. On a GPU `q` is bf16 and `out` bf16
/// or f32, `out` and `lse` contiguous; `q`, `cache.k` and `cache.v` may be columns of wider rows.
///
/// # Panics
/// On other shapes or element types, a cache with fewer pages than the batch uses, or a rope table that is not for half-split
/// pairs of all channels or ends too early.
pub fn attend(q: &Tensor, cache: &Cache<'_>, batch: &Batch, out: &mut Tensor, lse: Option<&mut Tensor>) {
    let shape = &batch.shape;
    let rows = batch.lengths.len() * shape.tokens;
    for (name, tensor, cols) in
        [("q", q, shape.heads * shape.width), ("out", &*out, shape.heads * shape.value_width)]
    {
        assert_eq!((tensor.rows(), tensor.cols()), (rows, cols), "paged attention: shape of {name}");
    }
    if let Some(lse) = &lse {
        assert_eq!((lse.rows(), lse.cols()), (rows, shape.heads), "paged attention: shape of lse");
        assert_eq!(lse.dtype(), DType::F32, "paged attention: element type of lse");
    }
    let slots = cache.k.tensor.rows();
    let count = shape.factors.unwrap_or(shape.kv_heads);
    cache.k.check("k", slots, (count, shape.width));
    assert_eq!(cache.v.is_none(), shape.shared, "paged attention: a plane of values");
    if let Some(v) = cache.v {
        v.check("v", slots, (count, shape.value_width));
    }
    assert_eq!(cache.factors.is_some(), shape.factors.is_some(), "paged attention: factors");
    for factors in cache.factors.into_iter().flatten() {
        factors.check("factors", slots, (count, shape.heads));
    }
    assert_eq!(cache.scales.is_some(), shape.fp8, "paged attention: scales of a cache in 8 bits");
    if let Some(scales) = cache.scales {
        for heads in [Some(cache.k), cache.v].into_iter().flatten() {
            let whole = heads.width.is_multiple_of(SCALE_BLOCK) && heads.stride.is_multiple_of(SCALE_BLOCK);
            assert!(whole, "paged attention: heads of {} channels in 8 bits", heads.width);
            fp8::Rows { values: heads.tensor, scales }.block();
        }
    }
    let pages = slots / shape.page;
    assert!(
        batch.highest.is_none_or(|page| (page as usize) < pages),
        "paged attention: page {:?} of a cache of {pages}",
        batch.highest
    );
    assert!(cache.scale > 0.0, "paged attention: a scale of {}", cache.scale);
    if let Some(slopes) = cache.alibi {
        let found = (slopes.rows(), slopes.cols(), slopes.dtype());
        assert_eq!(found, (1, shape.heads, DType::F32), "paged attention: slopes of the query heads");
    }
    assert_eq!(cache.rotate.is_some(), shape.rotate, "paged attention: a rope table");
    if let Some(table) = cache.rotate {
        assert_eq!(table.width(), shape.width, "paged attention: channels of the rope table");
        assert_eq!(
            table.pairing(),
            crate::rope::Pairing::HalfSplit,
            "paged attention: pairs of the rope table"
        );
        assert!(
            table.positions() >= batch.longest,
            "paged attention: {} keys, but {} rope positions",
            batch.longest,
            table.positions()
        );
    }
    if rows == 0 {
        return;
    }
    by_device!(out, reference::attend(q, cache, batch, out, lse), cuda::attend(q, cache, batch, out, lse));
}
