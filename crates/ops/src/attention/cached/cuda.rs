//! Attention over a cache on a GPU.
//!
//! A few new tokens a sequence read pages in place ([`paged`]). Prompts, and all tokens on GPUs before Hopper, have their sequence's rows gathered first and go through the forward pass of training: reading the
//! cache once more is little beside the products of a prompt. There TPA's factors are multiplied out.

use super::{
    Cached, Paged, Sequence, TpaCached,
    plans::{Inner, tables},
};
use crate::{
    attention::{
        Heads, Shape, cuda as whole,
        paged::{self, MAX_TOKENS, RECENT},
    },
    cuda::{arena, gpu_of, unsupported},
    embedding, fp8,
    indices::Indices,
    rope::{self, Heads as RopeHeads, Positions},
    tpa,
};
use keyfold_core::DType;
use keyfold_tensor::{Tensor, cuda::Gpu};

/// New tokens up to which a sequence's pages are read in place.
const FEW: usize = RECENT;

/// See [`super::cached`].
pub(super) fn cached(q: Heads<'_>, cache: &Cached<'_>, out: Heads<'_>) {
    let gpu = gpu_of(q.tensor);
    let in_place = paged_shape(gpu, q, cache);
    let prompts = whole::serves(q.width, cache.v.width);
    if in_place.is_none() && !prompts {
        let what = format!("attention over a cache with keys of {} and values of {}", q.width, cache.v.width);
        unsupported(gpu, format!("{what} channels (256 is the limit before Hopper)"))
    }
    let few = |sequence: &Sequence<'_>| in_place.is_some() && (sequence.new <= FEW || !prompts);
    let mut plans = cache.paged.plans.lock();
    let mut first = 0;
    for run in cache.paged.sequences.chunk_by(|a, b| few(a) && few(b)) {
        let rows = run.iter().map(|sequence| sequence.new).sum();
        let (q_rows, out_rows) = (q.tensor.row_range(first, rows), out.tensor.row_range(first, rows));
        let (q, out) = (Heads { tensor: &q_rows, ..q }, Heads { tensor: &out_rows, ..out });
        match in_place.filter(|_| few(&run[0])) {
            Some(shape) => {
                let layer = paged::Cache {
                    k: cache.k,
                    v: (!shape.shared).then_some(cache.v),
                    scales: cache.scales,
                    scale: cache.scale,
                    rotate: cache.rotate,
                    factors: None,
                    alibi: None,
                };
                pages(gpu, &mut plans, (shape, layer), cache.alibi, first, run, q, out);
            }
            None => gathered(gpu, &mut plans, first, &run[0], q, cache, out),
        }
        first += rows;
    }
}

/// The shape of a step that reads pages in place, if there is a kernel for it; its `tokens` are yet to be told.
fn paged_shape(gpu: &Gpu, q: Heads<'_>, cache: &Cached<'_>) -> Option<paged::Shape> {
    let Cached { k, v, paged, window, rotate, .. } = cache;
    let shared = k.tensor.address() == v.tensor.address() && (k.count == 1 || k.width == v.width);
    let shape = paged::Shape {
        heads: q.count,
        kv_heads: k.count,
        width: k.width,
        value_width: v.width,
        shared,
        rotate: rotate.is_some(),
        fp8: cache.scales.is_some(),
        page: paged.page_size,
        tokens: 1,
        window: *window,
        factors: None,
    };
    let strides = [q.tensor.stride(), k.tensor.stride(), v.tensor.stride()];
    let aligned = [q.tensor, k.tensor, v.tensor].iter().all(|tensor| tensor.address().is_multiple_of(16));
    (cache.scale > 0.0 && aligned && paged::cuda::serves(gpu, &shape, &strides)).then_some(shape)
}

/// The sequences `run`, whose first query is that of row `first`, over their pages; `layer` has no slopes yet.
#[allow(clippy::too_many_arguments)]
fn pages(
    gpu: &Gpu,
    plans: &mut Inner,
    (shape, layer): (paged::Shape, paged::Cache<'_>),
    alibi: Option<&[f32]>,
    first: usize,
    run: &[Sequence<'_>],
    q: Heads<'_>,
    out: Heads<'_>,
) {
    let new = run[0].new;
    let alike = new <= MAX_TOKENS && run.iter().all(|sequence| sequence.new == new);
    let shape = paged::Shape { tokens: if alike { new } else { 1 }, ..shape };
    let at = plans.batches.iter().position(|(like, row, _)| (like, *row) == (&shape, first));
    let at = at.unwrap_or_else(|| {
        let (lengths, tables) = match alike {
            true => tables(run, plans.most_pages),
            false => tables(&run.iter().flat_map(tokens).collect::<Vec<_>>(), plans.most_pages),
        };
        plans.batches.push((shape, first, paged::Batch::new(&arena(gpu), shape, &lengths, &tables)));
        plans.batches.len() - 1
    });
    let alibi = alibi.map(|slopes| slopes_of(gpu, plans, slopes));
    let layer = paged::Cache { alibi: alibi.as_ref(), ..layer };
    paged::attend(q.tensor, &layer, &plans.batches[at].2, &mut out.tensor.clone(), None);
}

/// `slopes` in the memory of `gpu`, for as long as the plans live: recorded steps read them there.
fn slopes_of(gpu: &Gpu, plans: &mut Inner, slopes: &[f32]) -> Tensor {
    if let Some((_, there)) = plans.slopes.iter().find(|(like, _)| like == slopes) {
        return there.clone();
    }
    let mut there = arena(gpu).tensor(1, slopes.len(), DType::F32);
    there.write(slopes);
    plans.slopes.push((slopes.to_vec(), there.clone()));
    there
}

/// The new tokens of a sequence, each as a sequence of its own that ends with it.
fn tokens<'a>(sequence: &Sequence<'a>) -> Vec<Sequence<'a>> {
    let Sequence { past, new, pages } = *sequence;
    (past..past + new).map(|past| Sequence { past, new: 1, pages }).collect()
}

/// One sequence, whose first query is that of row `first`, over rows that are gathered.
fn gathered(
    gpu: &Gpu,
    plans: &mut Inner,
    first: usize,
    sequence: &Sequence<'_>,
    q: Heads<'_>,
    cache: &Cached<'_>,
    out: Heads<'_>,
) {
    let at = rows_of(gpu, plans, first, sequence, cache.paged);
    let gather = |plane| gather(gpu, at, plane, cache.scales);
    let keys = gather(cache.k.tensor);
    let shared = cache.k.tensor.address() == cache.v.tensor.address()
        && cache.k.tensor.cols() >= cache.v.tensor.cols();
    let values = if shared { keys.columns(0, cache.v.tensor.cols()) } else { gather(cache.v.tensor) };
    let keys = match cache.rotate {
        None => keys,
        Some(table) => {
            let Heads { count, stride, .. } = cache.k;
            let mut rotated = arena(gpu).tensor(keys.rows(), keys.cols(), keys.dtype());
            let heads = RopeHeads { count, stride, offset: 0 };
            rope::apply_into(&keys, &mut rotated, heads, table, Positions::From(0), false);
            rotated
        }
    };
    let scores = Scores { scale: cache.scale, alibi: cache.alibi, window: cache.window };
    attend(
        gpu,
        sequence,
        q,
        Heads { tensor: &keys, ..cache.k },
        Heads { tensor: &values, ..cache.v },
        scores,
        out,
    );
}

/// See [`super::tpa_cached`].
pub(super) fn tpa_cached(q: Heads<'_>, cache: &TpaCached<'_>, out: Heads<'_>) {
    let gpu = gpu_of(q.tensor);
    let in_place = factors_shape(gpu, q, cache);
    let few = |sequence: &Sequence<'_>| in_place.is_some() && sequence.new <= FEW;
    let mut plans = cache.paged.plans.lock();
    let mut first = 0;
    for run in cache.paged.sequences.chunk_by(|a, b| few(a) && few(b)) {
        let rows = run.iter().map(|sequence| sequence.new).sum();
        let (q_rows, out_rows) = (q.tensor.row_range(first, rows), out.tensor.row_range(first, rows));
        let (q, out) = (Heads { tensor: &q_rows, ..q }, Heads { tensor: &out_rows, ..out });
        match in_place.filter(|_| few(&run[0])) {
            Some(shape) => {
                let layer = paged::Cache {
                    k: cache.b_k,
                    v: Some(cache.b_v),
                    scales: None,
                    scale: cache.scale,
                    rotate: None,
                    factors: Some([cache.a_k, cache.a_v]),
                    alibi: None,
                };
                pages(gpu, &mut plans, (shape, layer), cache.alibi, first, run, q, out);
            }
            None => multiplied(gpu, &mut plans, first, &run[0], q, cache, out),
        }
        first += rows;
    }
}

/// As `paged_shape`, for factors.
fn factors_shape(gpu: &Gpu, q: Heads<'_>, cache: &TpaCached<'_>) -> Option<paged::Shape> {
    let TpaCached { a_k, b_k, a_v, b_v, paged, .. } = *cache;
    let shape = paged::Shape {
        heads: q.count,
        kv_heads: 1,
        width: q.width,
        value_width: q.width,
        shared: false,
        rotate: false,
        fp8: false,
        page: paged.page_size,
        tokens: 1,
        window: None,
        factors: Some(b_k.count),
    };
    let terms = [a_k, b_k, a_v, b_v];
    let strides: Vec<usize> =
        terms.iter().flat_map(|t| [t.tensor.stride(), t.stride]).chain([q.tensor.stride()]).collect();
    let aligned = terms.iter().map(|t| t.tensor).chain([q.tensor]).all(|t| t.address().is_multiple_of(16));
    let fits = b_k.count == b_v.count && cache.scale > 0.0 && aligned;
    (fits && paged::cuda::serves(gpu, &shape, &strides)).then_some(shape)
}

/// One sequence, whose first query is that of row `first`, over keys and values that are formed from its factors.
fn multiplied(
    gpu: &Gpu,
    plans: &mut Inner,
    first: usize,
    sequence: &Sequence<'_>,
    q: Heads<'_>,
    cache: &TpaCached<'_>,
    out: Heads<'_>,
) {
    let at = rows_of(gpu, plans, first, sequence, cache.paged);
    let packed = |Heads { tensor, count, width, stride }: Heads<'_>| {
        let rows = arena(gpu).tensor(at.len(), count * width, DType::Bf16);
        for term in 0..count {
            let from = tensor.columns(term * stride, width);
            embedding::gather(at, &from, &mut rows.columns(term * width, width));
        }
        rows
    };
    let combined = |a: Heads<'_>, b: Heads<'_>| {
        let mut product = arena(gpu).tensor(at.len(), q.count * q.width, DType::Bf16);
        tpa::combine(&packed(a), &packed(b), q.count, &mut product);
        product
    };
    let (keys, values) = (combined(cache.a_k, cache.b_k), combined(cache.a_v, cache.b_v));
    let scores = Scores { scale: cache.scale, alibi: cache.alibi, window: None };
    let [keys, values] = [&keys, &values].map(|tensor| Heads::packed(tensor, q.count));
    attend(gpu, sequence, q, keys, values, scores, out);
}

/// Rows of the cache that hold the tokens of `sequence`, whose first query is that of row `first`.
fn rows_of<'a>(
    gpu: &Gpu,
    plans: &'a mut Inner,
    first: usize,
    sequence: &Sequence<'_>,
    paged: Paged<'_>,
) -> &'a Indices {
    let found = plans.rows.iter().position(|(row, _)| *row == first);
    let found = found.unwrap_or_else(|| {
        let size = paged.page_size;
        let row = |token: usize| (sequence.pages[token / size] as usize * size + token % size) as u32;
        let rows = (0..sequence.past + sequence.new).map(row).collect();
        plans.rows.push((first, Indices::new(&arena(gpu), rows)));
        plans.rows.len() - 1
    });
    &plans.rows[found].1
}

fn gather(gpu: &Gpu, at: &Indices, plane: &Tensor, scales: Option<&Tensor>) -> Tensor {
    let mut rows = arena(gpu).tensor(at.len(), plane.cols(), DType::Bf16);
    match scales {
        Some(scales) => fp8::load(fp8::Rows { values: plane, scales }, at, &mut rows),
        None => embedding::gather(at, plane, &mut rows),
    }
    rows
}

/// How scores come from products.
struct Scores<'a> {
    scale: f32,
    alibi: Option<&'a [f32]>,
    window: Option<usize>,
}

/// The new tokens of a sequence against keys and values of all its tokens.
fn attend(
    gpu: &Gpu,
    sequence: &Sequence<'_>,
    q: Heads<'_>,
    keys: Heads<'_>,
    values: Heads<'_>,
    scores: Scores<'_>,
    out: Heads<'_>,
) {
    let Sequence { past, new, .. } = *sequence;
    let starts = scores.window.filter(|window| *window < past + new).map(|window| {
        (past..past + new).map(|token| (token + 1).saturating_sub(window) as u32).collect::<Vec<_>>()
    });
    let shape =
        Shape { batch: 1, seq: new, scale: scores.scale, alibi: scores.alibi, doc_starts: starts.as_deref() };
    let lse = arena(gpu).tensor(q.count, new, DType::F32);
    whole::forward(q, keys, values, &shape, past, out, &lse);
}
