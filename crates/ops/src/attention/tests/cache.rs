//! Attention over a cache.

use super::*;
use crate::rope::{Pairing, RopeTable};

/// Tensor of `values`, rounded to `dtype`, and the rounded values.
fn stored(arena: &Arena, rows: usize, values: &[f32], dtype: DType) -> (Tensor, Vec<f64>) {
    let mut tensor = arena.tensor(rows, values.len() / rows, dtype);
    tensor.write(values);
    let kept = to_f64(&tensor.to_vec());
    (tensor, kept)
}

/// One sequence whose tokens are rows in order.
macro_rules! adjacent {
    ($past:expr, $new:expr) => {
        Paged {
            page_size: $past + $new,
            sequences: &[Sequence { past: $past, new: $new, pages: &[0] }],
            plans: &Plans::default(),
        }
    };
}

/// The rows of `tensor` in pages of a pool whose other rows are NaN: the pool and the page table, which is in no order.
fn in_pages(arena: &Arena, tensor: &Tensor, page_size: usize) -> (Tensor, Vec<u32>) {
    let pages = tensor.rows().div_ceil(page_size);
    let table: Vec<u32> = (0..pages as u32).map(|page| (page * 7 + 3) % (pages as u32 + 11)).collect();
    let spread = table.iter().collect::<std::collections::HashSet<_>>().len() == pages;
    let table = if spread { table } else { (1..=pages as u32).rev().collect() };
    let pool = arena.tensor((pages + 11) * page_size, tensor.cols(), tensor.dtype());
    for row in 0..tensor.rows() {
        let at = table[row / page_size] as usize * page_size + row % page_size;
        pool.row_range(at, 1).write(&tensor.row_range(row, 1).to_vec());
    }
    (pool, table)
}

fn check_cached(arch: Arch, case: &Case, dtype: DType) {
    check_window(arch, case, dtype, None);
}

fn check_window(arch: Arch, case: &Case, dtype: DType, window: Option<usize>) {
    check_on((arch, false), case, dtype, window, REL);
}

fn check_on((arch, tiles): (Arch, bool), case: &Case, dtype: DType, window: Option<usize>, tolerance: f64) {
    let arena = Arena::poisoned();
    let total = case.past + case.seq;
    let q = random(1, case.q_len());
    let q_t = arena.tensor_of(case.seq, case.heads * case.width, &q);
    let keys = random(2, total * case.kv_heads * case.width);
    let values = random(3, total * case.kv_heads * case.value_width);
    let (k_t, k) = stored(&arena, total, &keys, dtype);
    let (v_t, v) = stored(&arena, total, &values, dtype);
    let want = case.forward(&to_f64(&q), &k, &v).0;
    for page_size in [total, 64, 16, 7] {
        let out = Gapped::new(&arena, case.seq, case.heads, case.value_width, None);
        let [(k_t, pages), (v_t, _)] = [&k_t, &v_t].map(|tensor| in_pages(&arena, tensor, page_size));
        let sequences = [Sequence { past: case.past, new: case.seq, pages: &pages }];
        let cache = Cached {
            k: Heads::packed(&k_t, case.kv_heads),
            v: Heads::packed(&v_t, case.kv_heads),
            paged: Paged { page_size, sequences: &sequences, plans: &Plans::default() },
            scales: None,
            scale: case.scale as f32,
            alibi: case.alibi.as_deref(),
            window,
            rotate: None,
        };
        cpu::cached(arch, tiles, Heads::packed(&q_t, case.heads), &cache, out.heads());
        assert_close(&format!("out, pages of {page_size}"), &out.values(), &want, tolerance);
    }
}

fn after(past: usize, new: usize, heads: (usize, usize), widths: (usize, usize)) -> Case {
    Case { past, ..case(1, new, heads, widths) }
}

#[test]
fn decoding() {
    for arch in archs() {
        for dtype in [DType::F32, DType::Bf16] {
            for past in [0, 1, 62, 63, 64, 129, 700] {
                check_cached(arch, &after(past, 1, (4, 4), (24, 24)), dtype);
                check_cached(arch, &after(past, 1, (16, 2), (32, 16)), dtype);
                check_cached(arch, &after(past, 1, (8, 1), (6, 6)).with_alibi(), dtype);
            }
        }
    }
    check_cached(Arch::new(), &after(5000, 1, (64, 1), (64, 64)), DType::Bf16);
    check_cached(Arch::new(), &after(3000, 1, (3, 3), (64, 64)).with_alibi(), DType::F32);
    check_cached(Arch::new(), &after(1200, 1, (16, 1), (576, 512)), DType::Bf16);
}

#[test]
fn windows() {
    for arch in archs() {
        for (past, new, window) in [
            (0usize, 1usize, 1usize),
            (300, 1, 1),
            (300, 1, 70),
            (700, 1, 512),
            (60, 5, 3),
            (37, 64, 20),
            (1, 130, 64),
        ] {
            let starts = (past..past + new).map(|at| (at + 1).saturating_sub(window) as u32).collect();
            let case = Case { starts: Some(starts), ..after(past, new, (4, 2), (24, 16)) };
            check_window(arch, &case, DType::F32, Some(window));
            let case = Case { heads: 16, kv_heads: 1, ..case };
            check_window(arch, &case, DType::Bf16, Some(window));
        }
    }
}

#[test]
fn chunks_of_a_prompt() {
    for arch in archs() {
        for (past, new) in [(0, 2), (3, 3), (60, 5), (100, 63), (37, 64), (1, 130), (500, 65)] {
            check_cached(arch, &after(past, new, (4, 2), (24, 16)), DType::F32);
            check_cached(arch, &after(past, new, (8, 1), (16, 16)).with_alibi(), DType::Bf16);
        }
    }
}

/// Queries, keys, values and weights as bf16: 8 bits.
#[test]
fn chunks_of_a_prompt_on_tiles() {
    if !crate::gemm::tests_have_tiles() {
        return println!("skipped: this machine has no AMX");
    }
    let unit = (Arch::new(), true);
    for (past, new) in [(0, 32), (0, 65), (37, 64), (1, 130), (500, 65), (63, 33), (64, 64)] {
        for (heads, widths) in [
            ((4, 2), (24, 16)),
            ((9, 3), (64, 64)),
            ((1, 1), (33, 70)),
            ((16, 1), (40, 128)),
            ((3, 3), (96, 31)),
        ] {
            check_on(unit, &after(past, new, heads, widths), DType::F32, None, 2e-2);
            check_on(unit, &after(past, new, heads, widths).with_alibi(), DType::Bf16, None, 2e-2);
        }
        let window = 40;
        let starts = (past..past + new).map(|at| (at + 1).saturating_sub(window) as u32).collect();
        let case = Case { starts: Some(starts), ..after(past, new, (4, 2), (24, 16)) };
        check_on(unit, &case, DType::F32, Some(window), 2e-2);
    }
    check_on(unit, &after(300, 40, (16, 1), (576, 512)), DType::Bf16, None, 2e-2);
}

/// Small whole numbers, equal scores: nothing is rounded but the mean, to which keys that are not seen would show.
#[test]
fn tiles_see_what_they_may() {
    if !crate::gemm::tests_have_tiles() {
        return println!("skipped: this machine has no AMX");
    }
    let (past, new, width) = (70, 75, 32);
    let arena = Arena::poisoned();
    let total = past + new;
    let q = arena.tensor_of(new, 2 * width, &vec![0.0; new * 2 * width]);
    let k = arena.tensor_of(total, width, &random(2, total * width));
    let values: Vec<f32> = (0..total * width).map(|i| (i / width) as f32).collect();
    let v = arena.tensor_of(total, width, &values);
    for window in [None, Some(1), Some(20), Some(90)] {
        let cache = Cached {
            k: Heads::packed(&k, 1),
            v: Heads::packed(&v, 1),
            paged: adjacent!(past, new),
            scales: None,
            scale: 1.0,
            alibi: None,
            window,
            rotate: None,
        };
        let run = |threads| {
            let out = Gapped::new(&arena, new, 2, width, None);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| cpu::cached(Arch::new(), true, Heads::packed(&q, 2), &cache, out.heads()));
            out.values()
        };
        let got = run(1);
        assert!(got == run(2) && got == run(5), "threads change bits");
        for (query, row) in got.chunks_exact(2 * width).enumerate() {
            let last = (past + query) as f32;
            let first = window.map_or(0.0, |window| (last + 1.0 - window as f32).max(0.0));
            let want = (first + last) / 2.0;
            assert!(row.iter().all(|x| (x - want).abs() < 1e-3), "query {query}, {window:?}: {row:?}");
        }
    }
}

#[test]
fn values_inside_keys() {
    let (past, heads, width, value_width) = (300, 8, 40, 32);
    let arena = Arena::poisoned();
    let q = random(1, heads * width);
    let (k_t, k) = stored(&arena, past + 1, &random(2, (past + 1) * width), DType::Bf16);
    let v: Vec<f64> = k.chunks_exact(width).flat_map(|key| key[..value_width].to_vec()).collect();
    let q_t = arena.tensor_of(1, heads * width, &q);
    let out = arena.tensor(1, heads * value_width, DType::F32);
    let prefix = k_t.columns(0, value_width);
    let cache = Cached {
        k: Heads::packed(&k_t, 1),
        v: Heads::packed(&prefix, 1),
        paged: adjacent!(past, 1),
        scales: None,
        scale: 0.3,
        alibi: None,
        window: None,
        rotate: None,
    };
    cached(Heads::packed(&q_t, heads), &cache, Heads::packed(&out, heads));
    let case = Case { scale: 0.3, ..after(past, 1, (heads, 1), (width, value_width)) };
    assert_close("out", &out.to_vec(), &case.forward(&to_f64(&q), &k, &v).0, REL);
}

/// Rotating on read equals rotating before, and leaves values alone that are the same columns.
#[test]
fn rotation_on_read() {
    for pairing in [Pairing::HalfSplit, Pairing::Interleaved] {
        for (past, new) in [(0, 1), (300, 1), (90, 40)] {
            let case = after(past, new, (8, 1), (24, 24));
            let (arena, total) = (Arena::poisoned(), past + new);
            let table = RopeTable::new(24, 10_000.0, total).with_pairing(pairing);
            let q = random(1, case.q_len());
            let k = random(2, total * 24);
            let mut rotated = to_f64(&k);
            for (position, key) in rotated.chunks_exact_mut(24).enumerate() {
                for pair in 0..12 {
                    let (a, b) = match pairing {
                        Pairing::HalfSplit => (pair, pair + 12),
                        Pairing::Interleaved => (2 * pair, 2 * pair + 1),
                    };
                    let (cos, sin) =
                        (f64::from(table.cos(position)[pair]), f64::from(table.sin(position)[pair]));
                    (key[a], key[b]) = (key[a] * cos - key[b] * sin, key[b] * cos + key[a] * sin);
                }
            }
            let (q_t, k_t) = (arena.tensor_of(new, 8 * 24, &q), arena.tensor_of(total, 24, &k));
            let out = arena.tensor(new, 8 * 24, DType::F32);
            let kv = Heads::packed(&k_t, 1);
            let cache = Cached {
                k: kv,
                v: kv,
                paged: adjacent!(past, new),
                scales: None,
                scale: case.scale as f32,
                alibi: None,
                window: None,
                rotate: Some(&table),
            };
            cached(Heads::packed(&q_t, 8), &cache, Heads::packed(&out, 8));
            assert_close("out", &out.to_vec(), &case.forward(&to_f64(&q), &rotated, &to_f64(&k)).0, REL);
        }
    }
}

/// A prompt in chunks, a prompt at once and training's forward agree.
#[test]
fn chunked_is_one_shot_is_forward() {
    let (seq, heads, width) = (150, 4, 16);
    let case = case(1, seq, (heads, 2), (width, width)).with_alibi();
    let arena = Arena::poisoned();
    let q_t = arena.tensor_of(seq, heads * width, &random(1, case.q_len()));
    let [k_t, v_t] = [2, 3].map(|seed| arena.tensor_of(seq, 2 * width, &random(seed, seq * 2 * width)));
    let out = arena.tensor(seq, heads * width, DType::F32);
    let mut lse = arena.tensor(heads, seq, DType::F32);
    let (q, k, v) = (Heads::packed(&q_t, heads), Heads::packed(&k_t, 2), Heads::packed(&v_t, 2));
    forward(q, k, v, &case.shape(), Heads::packed(&out, heads), &mut lse);
    let want = to_f64(&out.to_vec());
    for step in [1, 7, 64, 150] {
        let out = arena.tensor(seq, heads * width, DType::F32);
        for past in (0..seq).step_by(step) {
            let new = step.min(seq - past);
            let (q, o) = (q_t.row_range(past, new), out.row_range(past, new));
            let (k, v) = (k_t.row_range(0, past + new), v_t.row_range(0, past + new));
            let cache = Cached {
                k: Heads::packed(&k, 2),
                v: Heads::packed(&v, 2),
                paged: adjacent!(past, new),
                scales: None,
                scale: case.scale as f32,
                alibi: case.alibi.as_deref(),
                window: None,
                rotate: None,
            };
            cached(Heads::packed(&q, heads), &cache, Heads::packed(&o, heads));
        }
        assert_close("chunked", &out.to_vec(), &want, REL);
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let (past, heads, width) = (4000, 16, 64);
    let arena = Arena::poisoned();
    let q_t = arena.tensor_of(1, heads * width, &random(1, heads * width));
    let k_t = arena.tensor_of(past + 1, width, &random(2, (past + 1) * width));
    let kv = Heads::packed(&k_t, 1);
    let cache = Cached {
        k: kv,
        v: kv,
        paged: adjacent!(past, 1),
        scales: None,
        scale: 0.2,
        alibi: None,
        window: None,
        rotate: None,
    };
    let run = |threads| {
        let out = arena.tensor(1, heads * width, DType::F32);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| cached(Heads::packed(&q_t, heads), &cache, Heads::packed(&out, heads)));
        out.to_vec()
    };
    assert_eq!(run(1), run(2));
}

#[test]
fn tensor_product_factors() {
    for arch in archs() {
        for dtype in [DType::F32, DType::Bf16] {
            for (past, new, heads, width, ranks) in [
                (0, 1, 4, 16, (2, 2)),
                (130, 1, 22, 24, (2, 3)),
                (77, 3, 6, 6, (1, 2)),
                (9, 70, 5, 16, (2, 2)),
            ] {
                check_tpa(arch, &after(past, new, (heads, heads), (width, width)), ranks, dtype);
                check_tpa(arch, &after(past, new, (heads, heads), (width, width)).with_alibi(), ranks, dtype);
            }
        }
    }
    check_tpa(Arch::new(), &after(3000, 1, (70, 70), (64, 64)), (2, 2), DType::F32);
}

fn check_tpa(arch: Arch, case: &Case, (key_rank, value_rank): (usize, usize), dtype: DType) {
    let arena = Arena::poisoned();
    let (total, heads, width) = (case.past + case.seq, case.heads, case.width);
    let q = random(1, case.q_len());
    let q_t = arena.tensor_of(case.seq, heads * width, &q);
    let factor = |seed, columns: usize| stored(&arena, total, &random(seed, total * columns), dtype);
    let (a_k, a_k64) = factor(2, key_rank * heads);
    let (b_k, b_k64) = factor(3, key_rank * width);
    let (a_v, a_v64) = factor(4, value_rank * heads);
    let (b_v, b_v64) = factor(5, value_rank * width);
    let k = compose(&a_k64, &b_k64, key_rank, heads, width);
    let v = compose(&a_v64, &b_v64, value_rank, heads, width);
    let want = case.forward(&to_f64(&q), &k, &v).0;
    for page_size in [total, 64, 7] {
        let out = Gapped::new(&arena, case.seq, heads, width, None);
        let factors = [&a_k, &b_k, &a_v, &b_v].map(|tensor| in_pages(&arena, tensor, page_size));
        let sequences = [Sequence { past: case.past, new: case.seq, pages: &factors[0].1 }];
        let cache = TpaCached {
            a_k: Heads::packed(&factors[0].0, key_rank),
            b_k: Heads::packed(&factors[1].0, key_rank),
            a_v: Heads::packed(&factors[2].0, value_rank),
            b_v: Heads::packed(&factors[3].0, value_rank),
            paged: Paged { page_size, sequences: &sequences, plans: &Plans::default() },
            scale: case.scale as f32,
            alibi: case.alibi.as_deref(),
        };
        cpu::tpa_cached(arch, Heads::packed(&q_t, heads), &cache, out.heads());
        assert_close(&format!("out, pages of {page_size}"), &out.values(), &want, REL);
    }
}

/// Sequences of a batch come out as they do alone, to the last bit.
#[test]
fn a_batch_is_its_sequences() {
    let (heads, width, page_size) = (8, 32, 16);
    let shapes = [(0, 1), (700, 1), (63, 1), (40, 0), (100, 70), (4000, 1), (0, 9), (64, 2)];
    let arena = Arena::poisoned();
    let pages = |(past, new): (usize, usize)| (past + new).div_ceil(page_size);
    let total: usize = shapes.iter().copied().map(pages).sum();
    let queries: usize = shapes.iter().map(|(_, new)| new).sum();
    let pool = arena.tensor_of(total * page_size, width, &random(1, total * page_size * width));
    let q = arena.tensor_of(queries, heads * width, &random(2, queries * heads * width));
    // Page tables that are interleaved: every sequence takes the next free page in turn.
    let mut tables = shapes.map(|_| Vec::new());
    let mut free = 0..total as u32;
    while !free.is_empty() {
        for (table, shape) in tables.iter_mut().zip(shapes) {
            if table.len() < pages(shape) {
                table.extend(free.next());
            }
        }
    }
    for window in [None, Some(90)] {
        let run = |q: &Tensor, sequences: &[Sequence<'_>]| {
            let out = arena.tensor(q.rows(), heads * width, DType::F32);
            let kv = Heads::packed(&pool, 2);
            let cache = Cached {
                k: kv,
                v: kv,
                paged: Paged { page_size, sequences, plans: &Plans::default() },
                scales: None,
                scale: 0.3,
                alibi: None,
                window,
                rotate: None,
            };
            cached(Heads::packed(q, 2 * heads), &cache, Heads::packed(&out, 2 * heads));
            out.to_vec()
        };
        let sequences: Vec<_> = shapes
            .iter()
            .zip(&tables)
            .map(|((past, new), pages)| Sequence { past: *past, new: *new, pages })
            .collect();
        let all = run(&q, &sequences);
        let mut first = 0;
        for sequence in &sequences {
            let alone = run(&q.row_range(first, sequence.new), std::slice::from_ref(sequence));
            assert!(alone == all[first * heads * width..][..alone.len()], "{window:?} {sequence:?}");
            first += sequence.new;
        }
    }
}

#[test]
#[should_panic(expected = "page 3 of sequence 0 in a cache of 3 pages")]
fn pages_are_checked() {
    let arena = Arena::new();
    let (q, pool) = (arena.zeros(1, 16, DType::F32), arena.zeros(12, 16, DType::F32));
    let (q, kv) = (Heads::packed(&q, 1), Heads::packed(&pool, 1));
    let sequences = [Sequence { past: 4, new: 1, pages: &[0, 3] }];
    let paged = Paged { page_size: 4, sequences: &sequences, plans: &Plans::default() };
    cached(
        q,
        &Cached { k: kv, v: kv, paged, scales: None, scale: 1.0, alibi: None, window: None, rotate: None },
        q,
    );
}
