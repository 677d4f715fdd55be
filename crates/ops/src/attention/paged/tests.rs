//! The plan's promises, and the twin in double precision against attention over contiguous rows.

#![allow(clippy::unwrap_used)]

use super::{
    Batch, Cache, Shape, attend,
    plan::{Cut, Item, Plan, Tiles, WHOLE},
};
use crate::{
    attention::{Cached, Heads, Paged, Plans, Sequence, TpaCached, cached, tpa_cached},
    rope::RopeTable,
    testing::random,
};
use keyfold_core::DType;
use keyfold_tensor::{Arena, Tensor};
use proptest::prelude::*;

/// All tiles that are seen once and in order, shares in order, parts where the cuts say.
fn check_plan(lengths: &[u32], kv_heads: usize, shares: usize, keys: usize, reach: usize) -> Plan {
    let plan = Plan::new(lengths, kv_heads, shares, Tiles { keys, reach });
    let tiles = |task: usize| (lengths[task / kv_heads] as usize).div_ceil(keys);
    let first =
        |task: usize| lengths.get(task / kv_heads).map_or(0, |n| (*n as usize).saturating_sub(reach) / keys);
    let mut next = 0;
    for (share, range) in plan.shares.iter().enumerate().filter(|(_, range)| !range.is_empty()) {
        assert_eq!(range.start, next, "share {share} does not follow");
        next = range.end;
    }
    assert_eq!(next, plan.items.len());
    let (mut task, mut tile, mut slots) = (0, first(0), 0);
    for (number, item) in plan.items.iter().enumerate() {
        assert_eq!((item.task, item.first), (task, tile), "item {number}");
        assert!(item.end > item.first || lengths[task / kv_heads] == 0);
        tile = item.end;
        let whole = item.first == first(task) && item.end == tiles(task);
        assert_eq!(item.cut.is_none(), whole);
        if let Some(cut) = item.cut {
            let Cut { task: of, slot, parts, share } = plan.cuts[cut];
            assert_eq!(of, task);
            let own = plan.shares.iter().position(|range| range.contains(&number)).unwrap();
            assert!((share..share + parts).contains(&own));
            if item.first == first(task) {
                assert_eq!((own, slot), (share, slots));
                slots += parts;
            }
        }
        if tile == tiles(task) {
            (task, tile) = (task + 1, first(task + 1));
        }
    }
    assert_eq!(task, lengths.len() * kv_heads);
    assert!(slots <= Plan::slots(shares));
    plan
}

proptest! {
    #[test]
    fn plans_cover_everything_once(
        lengths in prop::collection::vec(0u32..3000, 1..40),
        kv_heads in 1usize..5,
        shares in 1usize..140,
        reach in prop_oneof![Just(usize::MAX), 1usize..2000],
    ) {
        let plan = check_plan(&lengths, kv_heads, shares, 64, reach);
        let most = plan.shares.iter().map(|range| {
            plan.items[range.clone()].iter().map(|item| (item.end - item.first).max(1)).sum::<usize>()
        }).max().unwrap();
        let tiles = |length: &u32| Tiles { keys: 64, reach }.count(*length);
        let even = (kv_heads * lengths.iter().map(tiles).sum::<usize>()).div_ceil(shares);
        prop_assert!(most * 16 <= even * 17 || most <= even + WHOLE, "a share of {most} tiles, even ones have {even}");
    }
}

#[test]
fn equal_sequences_are_cut_evenly_or_not_at_all() {
    // 128 sequences for 132 multiprocessors: one each, though even shares would be 3 % smaller.
    assert!(check_plan(&[8192; 128], 1, 132, 64, usize::MAX).cuts.is_empty());
    // 64: two parts each.
    let plan = check_plan(&[32768; 64], 1, 132, 64, usize::MAX);
    assert!(plan.cuts.iter().all(|cut| cut.parts == 2) && plan.items.len() == 128);
    let one = check_plan(&[32768], 1, 132, 64, usize::MAX);
    assert_eq!((one.cuts[0].parts, one.items[0].end), (128, 4));
    // 65 tiles each: a share has a part of one sequence alone, though even shares would be four tiles.
    let plan = check_plan(&[4160; 8], 1, 132, 64, usize::MAX);
    assert!(plan.cuts.iter().all(|cut| cut.parts == 13) && plan.shares.iter().all(|range| range.len() <= 1));
    // A window and four tokens: two or three tiles however long the sequence, of one and two shares' worth.
    let plan = check_plan(&[8192, 100_000, 63, 130], 1, 132, 64, 131);
    assert_eq!(plan.items.iter().map(|item| item.end - item.first).sum::<usize>(), 3 + 3 + 1 + 3);
    // Nothing but its output to write.
    let empty = Item { task: 0, first: 0, end: 0, cut: None };
    assert_eq!(check_plan(&[0], 1, 3, 64, usize::MAX).items, [empty]);
}

/// Contiguous rows of a sequence, dealt to pages in an order that looks random; everything else is NaN.
fn paged(arena: &Arena, shape: &Shape, lengths: &[u32], cols: usize) -> (Vec<Tensor>, Tensor, Vec<u32>) {
    let most = lengths.iter().map(|length| (*length as usize).div_ceil(shape.page)).max().unwrap() + 1;
    let pages = most * lengths.len() + 3;
    let mut values = vec![f32::NAN; pages * shape.page * cols];
    let mut tables = vec![u32::MAX; most * lengths.len()];
    let mut rows = Vec::new();
    let mut next = 0;
    for (sequence, length) in lengths.iter().enumerate() {
        let contiguous = random(17 + sequence as u64, *length as usize * cols);
        for page in 0..(*length as usize).div_ceil(shape.page) {
            // 7 has no factor in common with the number of pages that are tried here.
            next = (next + 7) % pages;
            tables[sequence * most + page] = next as u32;
            let from = page * shape.page * cols;
            let part = &contiguous[from..contiguous.len().min(from + shape.page * cols)];
            values[next * shape.page * cols..][..part.len()].copy_from_slice(part);
        }
        rows.push(arena.tensor_of(*length as usize, cols, &contiguous));
    }
    (rows, arena.tensor_of(pages * shape.page, cols, &values), tables)
}

fn heads_of(tensor: &Tensor, count: usize, width: usize) -> Heads<'_> {
    Heads { tensor, count, width, stride: width }
}

#[test]
fn pages_in_any_order_are_as_contiguous_rows() {
    let arena = Arena::poisoned();
    for (heads, kv_heads, width, value_width, shared, rotate) in [
        (6, 1, 32, 32, false, false),
        (6, 2, 32, 16, false, false),
        (4, 1, 32, 32, true, false),
        (4, 1, 32, 32, true, true),
        (4, 1, 24, 16, true, false),
    ] {
        for (page, tokens, window) in
            [(16, 1, None), (16, 3, None), (64, 4, None), (16, 1, Some(20)), (16, 4, Some(64))]
        {
            let shape = Shape {
                heads,
                kv_heads,
                width,
                value_width,
                shared,
                rotate,
                fp8: false,
                page,
                tokens,
                window,
                factors: None,
            };
            let slopes = (window == Some(20)).then(|| random(5, heads));
            let alibi = slopes.as_ref().map(|slopes| arena.tensor_of(1, heads, slopes));
            let lengths = [5, 63, 65, 130];
            let cols = kv_heads * (width + if shared { 0 } else { value_width });
            let (rows, cache, tables) = paged(&arena, &shape, &lengths, cols);
            let table = RopeTable::new(width, 1e4, 200);
            let rotate = rotate.then_some(&table);
            let q = arena.tensor_of(
                lengths.len() * tokens,
                heads * width,
                &random(3, lengths.len() * tokens * heads * width),
            );
            let mut out = arena.tensor(q.rows(), heads * value_width, DType::F32);
            let mut lse = arena.tensor(q.rows(), heads, DType::F32);
            let planes = |tensor: &Tensor| {
                let start = if shared { 0 } else { kv_heads * width };
                (
                    tensor.columns(0, kv_heads * width),
                    tensor.columns(start, kv_heads * value_width.min(width)),
                )
            };
            let (k, v) = planes(&cache);
            let cache = Cache {
                k: heads_of(&k, kv_heads, width),
                v: (!shared).then(|| heads_of(&v, kv_heads, value_width)),
                scales: None,
                scale: 0.3,
                rotate,
                factors: None,
                alibi: alibi.as_ref(),
            };
            let batch = Batch::new(&arena, shape, &lengths, &tables);
            attend(&q, &cache, &batch, &mut out, Some(&mut lse));
            for (sequence, rows) in rows.iter().enumerate() {
                let (k, v) = planes(rows);
                let past = rows.rows() - tokens;
                let expected = arena.tensor(tokens, heads * value_width, DType::F32);
                let own = q.row_range(sequence * tokens, tokens);
                let contiguous = Cached {
                    k: heads_of(&k, kv_heads, width),
                    v: heads_of(&v, kv_heads, value_width),
                    paged: Paged {
                        page_size: past + tokens,
                        sequences: &[Sequence { past, new: tokens, pages: &[0] }],
                        plans: &Plans::default(),
                    },
                    scales: None,
                    scale: 0.3,
                    alibi: slopes.as_deref(),
                    window,
                    rotate,
                };
                cached(Heads::packed(&own, heads), &contiguous, Heads::packed(&expected, heads));
                let got = out.row_range(sequence * tokens, tokens).to_vec();
                for (got, expected) in got.iter().zip(expected.to_vec()) {
                    assert!(
                        (got - expected).abs() < 1e-5,
                        "{shape:?}, sequence {sequence}: {got} {expected}"
                    );
                }
            }
            assert!(lse.to_vec().iter().all(|x| x.is_finite()));
        }
    }
}

#[test]
fn factors_are_as_the_keys_that_they_make() {
    let arena = Arena::poisoned();
    for (heads, width, rank, page, tokens) in [(5, 16, 2, 16, 1), (12, 8, 4, 64, 3), (3, 16, 1, 16, 4)] {
        let factors = Some(rank);
        let shape = Shape {
            heads,
            kv_heads: 1,
            width,
            value_width: width,
            shared: false,
            rotate: false,
            fp8: false,
            page,
            tokens,
            window: None,
            factors,
        };
        let lengths = [5, 63, 130];
        let (b, a) = (rank * width, rank * heads);
        let (rows, cache, tables) = paged(&arena, &shape, &lengths, 2 * (a + b));
        let planes = |tensor: &Tensor| {
            [(0, b), (b, b), (2 * b, a), (2 * b + a, a)].map(|(at, n)| tensor.columns(at, n))
        };
        let q = random(3, lengths.len() * tokens * heads * width);
        let q = arena.tensor_of(lengths.len() * tokens, heads * width, &q);
        let slopes = random(5, heads);
        let [b_k, b_v, a_k, a_v] = planes(&cache);
        let layer = Cache {
            k: heads_of(&b_k, rank, width),
            v: Some(heads_of(&b_v, rank, width)),
            scales: None,
            scale: 0.3,
            rotate: None,
            factors: Some([heads_of(&a_k, rank, heads), heads_of(&a_v, rank, heads)]),
            alibi: Some(&arena.tensor_of(1, heads, &slopes)),
        };
        let batch = Batch::new(&arena, shape, &lengths, &tables);
        let mut out = arena.tensor(q.rows(), heads * width, DType::F32);
        attend(&q, &layer, &batch, &mut out, None);
        for (sequence, rows) in rows.iter().enumerate() {
            let planes = planes(rows);
            let [b_k, b_v, a_k, a_v] = planes.each_ref().map(|plane| Heads::packed(plane, rank));
            let past = rows.rows() - tokens;
            let layer = TpaCached {
                a_k,
                b_k,
                a_v,
                b_v,
                paged: Paged {
                    page_size: rows.rows(),
                    sequences: &[Sequence { past, new: tokens, pages: &[0] }],
                    plans: &Plans::default(),
                },
                scale: 0.3,
                alibi: Some(&slopes),
            };
            let own = q.row_range(sequence * tokens, tokens);
            let expected = arena.tensor(tokens, heads * width, DType::F32);
            tpa_cached(Heads::packed(&own, heads), &layer, Heads::packed(&expected, heads));
            let got = out.row_range(sequence * tokens, tokens).to_vec();
            for (got, expected) in got.iter().zip(expected.to_vec()) {
                assert!((got - expected).abs() < 1e-5, "{shape:?}, sequence {sequence}: {got} {expected}");
            }
        }
    }
}

#[test]
#[should_panic(expected = "needs 2 pages, its table has 1")]
fn a_table_that_is_too_short_is_refused() {
    let shape = Shape {
        heads: 4,
        kv_heads: 1,
        width: 16,
        value_width: 16,
        shared: false,
        rotate: false,
        fp8: false,
        page: 16,
        tokens: 1,
        window: None,
        factors: None,
    };
    let _ = Batch::new(&Arena::new(), shape, &[17], &[0]);
}
