//! Attention over a cache as the designs ask for it: single tokens, prompts and both at once, windows and slopes, pages in
//! any order among pages that hold NaN.

use super::twin::{Gaps, Twin, Twins, random};
use crate::{
    attention::{self, Cached, Heads, Paged, Plans, Sequence, TpaCached},
    rope::RopeTable,
};
use keyfold_core::DType;

/// Rounding of weights, of rotated keys and of the output to bf16.
const LIMIT: f64 = 8e-3;
/// Tokens before, and new ones.
const BATCHES: [&[(usize, usize)]; 4] = [
    &[(0, 1), (62, 1), (64, 1), (4096, 1)],
    &[(3, 4), (61, 4)],
    &[(0, 130)],
    &[(70, 1), (5, 77), (64, 3), (9, 1)],
];

/// Sequences with their pages.
struct Batch {
    sequences: Vec<(usize, usize, Vec<u32>)>,
    pages: usize,
}

impl Batch {
    /// Pages dealt from the last down, every other one.
    fn new(tokens: &[(usize, usize)], page: usize) -> Self {
        let needed = |past: usize, new: usize| (past + new).div_ceil(page);
        let all: usize = tokens.iter().map(|(past, new)| needed(*past, *new)).sum();
        let mut next = (0..all as u32).rev();
        let deal = |&(past, new): &(usize, usize)| {
            (past, new, next.by_ref().take(needed(past, new)).map(|at| 2 * at).collect())
        };
        Self { sequences: tokens.iter().map(deal).collect(), pages: 2 * all }
    }

    fn sequences(&self) -> Vec<Sequence<'_>> {
        self.sequences.iter().map(|(past, new, pages)| Sequence { past: *past, new: *new, pages }).collect()
    }

    fn new_tokens(&self) -> usize {
        self.sequences.iter().map(|(_, new, _)| new).sum()
    }

    /// A cache of `cols` columns: values where there are tokens, NaN elsewhere.
    fn cache(&self, twins: &mut Twins<'_>, page: usize, cols: usize) -> Twin {
        let mut values = vec![f32::NAN; self.pages * page * cols];
        for (past, new, pages) in &self.sequences {
            for token in 0..past + new {
                let row = pages[token / page] as usize * page + token % page;
                let filled = random(row as u64 + 99, cols);
                values[row * cols..][..cols].copy_from_slice(&filled);
            }
        }
        twins.of(self.pages * page, cols, DType::Bf16, Gaps::Aligned, &values)
    }
}

/// Heads, kv heads, width, value width; whether values are channels of the key, and keys are rotated on read.
#[derive(Clone, Copy)]
struct Form {
    sizes: [usize; 4],
    shared: bool,
    rotate: bool,
    window: Option<usize>,
    slopes: bool,
}

pub(super) fn attention(twins: &mut Twins<'_>) {
    let form = |sizes| Form { sizes, shared: false, rotate: false, window: None, slopes: false };
    let shared = |sizes| Form { shared: true, ..form(sizes) };
    for batch in BATCHES {
        for page in [16, 64] {
            check(twins, form([32, 1, 256, 256]), batch, page);
            check(twins, form([9, 3, 64, 64]), batch, page);
            check(twins, form([4, 4, 128, 128]), batch, page);
            check(twins, shared([32, 1, 256, 256]), batch, page);
            check(twins, Form { rotate: true, ..shared([32, 1, 256, 256]) }, batch, page);
            check(twins, Form { rotate: true, ..shared([8, 1, 16, 16]) }, batch, page);
            check(twins, shared([16, 1, 576, 512]), batch, page);
            check(twins, shared([8, 1, 96, 64]), batch, page);
            check(twins, Form { window: Some(40), ..form([8, 2, 64, 64]) }, batch, page);
            check(twins, Form { window: Some(64), slopes: true, ..form([32, 1, 256, 256]) }, batch, page);
            check(twins, Form { slopes: true, ..form([8, 2, 64, 64]) }, batch, page);
            check(twins, Form { slopes: true, ..shared([8, 1, 32, 32]) }, batch, page);
        }
        check(twins, form([8, 2, 20, 20]), batch, 48);
    }
}

fn check(twins: &mut Twins<'_>, form: Form, tokens: &[(usize, usize)], page: usize) {
    let Form { sizes: [heads, kv_heads, width, value_width], shared, rotate, window, slopes } = form;
    let batch = Batch::new(tokens, page);
    let cols = kv_heads * (width + if shared { 0 } else { value_width });
    let cache = batch.cache(twins, page, cols);
    let new = batch.new_tokens();
    let q = twins.random(new, heads * width, DType::Bf16, Gaps::Aligned);
    let mut out = twins.empty(new, heads * value_width, DType::Bf16, Gaps::None);
    let table = RopeTable::new(width, 5e5, 5000);
    let slopes: Option<Vec<f32>> =
        slopes.then(|| (1..=heads).map(|head| (-8.0 * head as f32 / heads as f32).exp2()).collect());
    let sequences = batch.sequences();
    for (cache, q, out) in
        [(&cache.host, &q.host, &mut out.host), (&cache.device, &q.device, &mut out.device)]
    {
        let k = cache.columns(0, kv_heads * width);
        let v = match shared {
            true => cache.columns(0, value_width),
            false => cache.columns(kv_heads * width, kv_heads * value_width),
        };
        let layer = Cached {
            k: Heads::packed(&k, kv_heads),
            v: Heads::packed(&v, kv_heads),
            paged: Paged { page_size: page, sequences: &sequences, plans: &Plans::default() },
            scales: None,
            scale: (width as f32).powf(-0.5),
            alibi: slopes.as_deref(),
            window,
            rotate: rotate.then_some(&table),
        };
        attention::cached(Heads::packed(q, heads), &layer, Heads::packed(out, heads));
    }
    let what = format!(
        "{heads}/{kv_heads} x {width}/{value_width}{}{}{}{}, {tokens:?}, pages of {page}",
        if shared { ", shared" } else { "" },
        if rotate { ", rotated" } else { "" },
        if window.is_some() { ", window" } else { "" },
        if slopes.is_some() { ", slopes" } else { "" },
    );
    twins.compare(what, &out, LIMIT);
}

pub(super) fn tpa(twins: &mut Twins<'_>) {
    for tokens in BATCHES {
        for (heads, width, key_rank, value_rank, slopes) in [
            (8, 64, 2, 2, false),
            (3, 16, 1, 3, false),
            (91, 128, 2, 2, false),
            (12, 64, 4, 4, true),
            (16, 128, 1, 1, true),
            (6, 32, 3, 3, true),
        ] {
            let (page, batch) = (16, Batch::new(tokens, 16));
            let (ranks, step) = ([key_rank, value_rank], usize::next_multiple_of(heads, 8));
            let widths = [key_rank * width, value_rank * width, key_rank * step, value_rank * step];
            let slopes: Option<Vec<f32>> =
                slopes.then(|| (1..=heads).map(|head| (-8.0 * head as f32 / heads as f32).exp2()).collect());
            let cache = batch.cache(twins, page, widths.iter().sum());
            let new = batch.new_tokens();
            let q = twins.random(new, heads * width, DType::Bf16, Gaps::None);
            let mut out = twins.empty(new, heads * width, DType::Bf16, Gaps::None);
            let sequences = batch.sequences();
            for (cache, q, out) in
                [(&cache.host, &q.host, &mut out.host), (&cache.device, &q.device, &mut out.device)]
            {
                let mut start = 0;
                let [b_k, b_v, a_k, a_v] = widths.map(|width| {
                    start += width;
                    cache.columns(start - width, width)
                });
                let [a_k, a_v] = [(&a_k, key_rank), (&a_v, value_rank)].map(|(tensor, count)| Heads {
                    tensor,
                    count,
                    width: heads,
                    stride: step,
                });
                let layer = TpaCached {
                    a_k,
                    b_k: Heads::packed(&b_k, ranks[0]),
                    a_v,
                    b_v: Heads::packed(&b_v, ranks[1]),
                    paged: Paged { page_size: page, sequences: &sequences, plans: &Plans::default() },
                    scale: (width as f32).powf(-0.5),
                    alibi: slopes.as_deref(),
                };
                attention::tpa_cached(Heads::packed(q, heads), &layer, Heads::packed(out, heads));
            }
            twins.compare(
                format!(
                    "{heads} x {width}, ranks {key_rank}/{value_rank}, slopes {}, {tokens:?}",
                    slopes.is_some()
                ),
                &out,
                2.0 * LIMIT,
            );
        }
    }
}
