//! Attention of new tokens to everything in a cache that already holds their own rows: decoding, prompts in chunks, and
//! both at once for many sequences.

#[cfg(feature = "cuda")]
mod cuda;
mod plans;

pub use plans::Plans;

use super::{Heads, check_f32, check_groups, cpu};
use crate::{dispatch::by_device, gemm, rope::RopeTable};
use keyfold_tensor::Tensor;
use pulp::Arch;

/// Keys and values of the tokens so far, with what the queries need to look at them.
#[derive(Clone, Copy, Debug)]
pub struct Cached<'a> {
    /// f32 or bf16, on a GPU bf16 or 8 bits; a row per token in the order of the pages.
    pub k: Heads<'a>,
    /// As `k`. May be the very same columns (MFA-KR) or some of them (absorbed MLA).
    pub v: Heads<'a>,
    /// Which rows are whose.
    pub paged: Paged<'a>,
    /// Where `k` and `v` are in 8 bits, on a GPU: see [`fp8::Rows`](crate::fp8::Rows).
    pub scales: Option<&'a Tensor>,
    /// Factor on the dot products of queries and keys.
    pub scale: f32,
    /// `[query heads]`: slope m of each, adds `-m * distance` to its scores.
    pub alibi: Option<&'a [f32]>,
    /// Keys that a query sees, its own included; all before it by default.
    pub window: Option<usize>,
    /// Rotates the keys as they are read. The values stay as they are, also where they are the same columns.
    pub rotate: Option<&'a RopeTable>,
}

/// One sequence of a [`Paged`] batch.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    /// Tokens before the first query.
    pub past: usize,
    /// Queries: so many consecutive rows.
    pub new: usize,
    /// Where the tokens lie: the token at position j is row `j % page_size` of page `pages[j / page_size]`.
    pub pages: &'a [u32],
}

/// Sequences whose tokens lie in pages: page p is the cache's rows from `p * page_size` on, `page_size` of them.
#[derive(Clone, Copy, Debug)]
pub struct Paged<'a> {
    /// Tokens of a page. Pages of whole blocks of 64 keys are read where they lie.
    pub page_size: usize,
    /// The sequences, in the order of their queries.
    pub sequences: &'a [Sequence<'a>],
    /// What the layers of a step tell a GPU of them, made by the first.
    pub plans: &'a Plans,
}

impl Paged<'_> {
    #[track_caller]
    fn check(&self, queries: usize, rows: usize) {
        let Self { page_size, sequences, .. } = *self;
        assert!(page_size > 0, "attention: pages of no tokens");
        let new: usize = sequences.iter().map(|sequence| sequence.new).sum();
        assert_eq!(queries, new, "attention: queries, and new tokens of all sequences");
        for (index, Sequence { past, new, pages }) in sequences.iter().enumerate() {
            assert!(
                past + new <= pages.len() * page_size,
                "attention: {} tokens in {} pages of {page_size} in sequence {index}",
                past + new,
                pages.len()
            );
            let used = &pages[..(past + new).div_ceil(page_size)];
            if let Some(page) = used.iter().find(|page| (**page as usize + 1) * page_size > rows) {
                panic!("attention: page {page} of sequence {index} in a cache of {} pages", rows / page_size);
            }
        }
    }

    fn longest(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.past + sequence.new).max().unwrap_or(0)
    }
}

/// Keys and values of the tokens so far as the factors of tensor-product attention (arXiv 2501.06425).
///
/// The key of head h is `1/key_rank * sum_r a_k[r, h] * b_k[r]`, its value likewise.
#[derive(Clone, Copy, Debug)]
pub struct TpaCached<'a> {
    /// As many "heads" as a key has terms, a column per query head each; f32 or bf16, a row per token in the order of the pages.
    pub a_k: Heads<'a>,
    /// The rows of these terms, already rotated.
    pub b_k: Heads<'a>,
    /// As `a_k`, of values.
    pub a_v: Heads<'a>,
    /// As `b_k`, of values.
    pub b_v: Heads<'a>,
    /// Which rows are whose.
    pub paged: Paged<'a>,
    /// Factor on the dot products of queries and keys.
    pub scale: f32,
    /// `[heads]`: slope m of each, adds `-m * distance` to its scores.
    pub alibi: Option<&'a [f32]>,
}

/// Attention of the new tokens of some sequences to everything of their own sequence in the cache.
///
/// Query i of a sequence is at position `past + i` and sees the keys `0 ..= past + i`, or the last `window` of these.
/// What comes out for a sequence does not depend on the other sequences, to the last bit. At
/// [`gemm::Precision::Medium`] 32 and more new tokens of a sequence are computed in bf16 where the processor has tiles.
///
/// # Shapes
/// `q` new x (m heads of d), rotated already, sequence after sequence; `cache.k` rows x (g of d), `cache.v` rows x (g of
/// e), `out` new x (m of e). `q` and `out` are f32; on a GPU all are bf16, the heads of `q` and `out` are adjacent, and `out`
/// has no gaps between its rows.
///
/// # Panics
/// On shapes other than these, pages that are not in the cache or too few for a sequence, `m` not a multiple of `g`,
/// element types that differ between `k` and `v`, or a `rotate` table that is not for d channels or ends too early.
pub fn cached(q: Heads<'_>, cache: &Cached<'_>, out: Heads<'_>) {
    let (new, rows) = (q.tensor.rows(), cache.k.tensor.rows());
    q.check("q", new, (q.count, cache.k.width));
    cache.k.check("k", rows, (cache.k.count, q.width));
    cache.v.check("v", rows, (cache.k.count, cache.v.width));
    out.check("out", new, (q.count, cache.v.width));
    check_f32(&[("q", q.tensor), ("out", out.tensor)]);
    check_groups(q.count, cache.k.count, cache.alibi);
    cache.paged.check(new, rows);
    assert_ne!(cache.window, Some(0), "attention: a window without keys");
    assert_eq!(cache.k.tensor.dtype(), cache.v.tensor.dtype(), "attention: element types of keys and values");
    if let Some(table) = cache.rotate {
        let longest = cache.paged.longest();
        assert_eq!(table.width(), q.width, "attention: channels of the rope table");
        assert!(
            table.positions() >= longest,
            "attention: {longest} keys, but {} rope positions",
            table.positions()
        );
    }
    if new == 0 {
        return;
    }
    let on_tiles = gemm::bf16_on_tiles();
    by_device!(q.tensor, cpu::cached(Arch::new(), on_tiles, q, cache, out), cuda::cached(q, cache, out));
}

/// As [`cached`], over factors instead of keys and values, which are never materialised. On a GPU that holds for a few new tokens
/// a sequence on Hopper, with heads of up to 128 channels and 1, 2 or 4 terms each for keys and values, all of which begin at
/// multiples of 16 bytes; otherwise they are, every step.
///
/// # Shapes
/// `q` and `out` new x (m heads of d), f32 (on a GPU all bf16), `q` rotated already; the cache as in [`TpaCached`].
///
/// # Panics
/// On shapes other than these, pages that are not in the cache or too few for a sequence, or element types that differ
/// between the factors.
pub fn tpa_cached(q: Heads<'_>, cache: &TpaCached<'_>, out: Heads<'_>) {
    let (new, rows) = (q.tensor.rows(), cache.a_k.tensor.rows());
    q.check("q", new, (q.count, q.width));
    out.check("out", new, (q.count, q.width));
    check_f32(&[("q", q.tensor), ("out", out.tensor)]);
    check_groups(q.count, q.count, cache.alibi);
    cache.paged.check(new, rows);
    let (keys, values) = (cache.b_k.count, cache.b_v.count);
    for (name, terms, like) in [
        ("a_k", cache.a_k, (keys, q.count)),
        ("b_k", cache.b_k, (keys, q.width)),
        ("a_v", cache.a_v, (values, q.count)),
        ("b_v", cache.b_v, (values, q.width)),
    ] {
        terms.check(name, rows, like);
        let found = terms.tensor.dtype();
        assert_eq!(found, cache.a_k.tensor.dtype(), "tensor-product attention: element type of {name}");
    }
    if new == 0 {
        return;
    }
    by_device!(q.tensor, cpu::tpa_cached(Arch::new(), q, cache, out), cuda::tpa_cached(q, cache, out));
}
