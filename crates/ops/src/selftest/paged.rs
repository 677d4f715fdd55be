//! Attention over a paged cache: every form of the kernel, odd lengths, page sizes, pages in any order among pages and rows
//! that hold NaN, several tokens a sequence, windows with NaN before them, slopes, and the plan.

use super::twin::{Gaps, Twins};
use crate::{
    attention::{
        Heads,
        paged::{Batch, Cache, Shape, attend},
    },
    fp8,
    rope::RopeTable,
};
use keyfold_core::{DType, SCALE_BLOCK, row_width};
use keyfold_tensor::{Arena, Tensor};

/// Rounding of weights, of rotated keys and of the output to bf16.
const LIMIT: f64 = 5e-3;
const LONG: [u32; 5] = [1, 63, 0, 65, 4097];
const SHORT: [u32; 4] = [4, 63, 65, 130];

/// heads, kv heads, width, value width.
type Sizes = [usize; 4];

fn shape([heads, kv_heads, width, value_width]: Sizes, page: usize, tokens: usize) -> Shape {
    Shape {
        heads,
        kv_heads,
        width,
        value_width,
        shared: false,
        rotate: false,
        fp8: false,
        page,
        tokens,
        window: None,
        factors: None,
    }
}

fn shared(shape: Shape) -> Shape {
    Shape { shared: true, ..shape }
}

fn eight_bits(shape: Shape) -> Shape {
    Shape { fp8: true, ..shape }
}

fn rotated(shape: Shape) -> Shape {
    Shape { shared: true, rotate: true, ..shape }
}

fn windowed(window: usize, shape: Shape) -> Shape {
    Shape { window: Some(window), ..shape }
}

pub(super) fn attention(twins: &mut Twins<'_>) {
    let mfa = [64, 1, 256, 256];
    for page in [16, 32, 64, 128] {
        check(twins, shape(mfa, page, 1), &LONG);
        check(twins, shared(shape(mfa, page, 1)), &LONG);
    }
    check(twins, rotated(shape(mfa, 64, 1)), &LONG);
    check(twins, rotated(shape(mfa, 16, 4)), &SHORT);
    // Tables of angles that end within a tile; so many tiles a CTA that angles are read again.
    for lengths in [[1, 1], [5, 3], [40, 9]] {
        check(twins, rotated(shape(mfa, 64, 1)), &lengths);
    }
    check(twins, rotated(shape([2, 1, 256, 256], 64, 1)), &[3000; 67]);
    for (tokens, page) in [(2, 64), (3, 32), (4, 32)] {
        check(twins, shape(mfa, 64, tokens), &SHORT);
        check(twins, shared(shape(mfa, page, tokens)), &SHORT);
    }
    // More sequences than multiprocessors, and tasks of several kv heads among few shares.
    check(twins, shape([16, 1, 64, 64], 64, 1), &[200; 300]);
    // So many keys that a CTA goes through several tiles of one.
    let many: Vec<u32> = LONG.into_iter().chain([600; 62]).collect();
    let two = [2, 1, 256, 256];
    check(twins, shape(two, 64, 1), &many);
    check(twins, rotated(shape(two, 64, 1)), &many);
    check(twins, eight_bits(rotated(shape(two, 64, 1))), &many);
    for form in [|shape| shape, shared] {
        for page in [16, 32, 64, 128] {
            check(twins, eight_bits(form(shape(two, page, 1))), &many);
        }
        check(twins, eight_bits(form(shape(two, 64, 4))), &[130; 300]);
        check(twins, eight_bits(windowed(300, form(shape(two, 64, 2)))), &[600; 67]);
        check_with(twins, eight_bits(form(shape(two, 64, 1))), &[600; 67], true);
    }
    check(twins, eight_bits(shape(mfa, 64, 1)), &[600; 67]);
    check(twins, eight_bits(shape([66, 2, 256, 256], 64, 1)), &[300; 67]);
    check(twins, shape([32, 8, 128, 128], 64, 1), &LONG);
    check(twins, shape([32, 8, 128, 128], 16, 4), &SHORT);
    check(twins, shared(shape([16, 1, 128, 128], 64, 1)), &LONG);
    check(twins, rotated(shape([16, 1, 128, 128], 64, 1)), &LONG);
    check(twins, rotated(shape([16, 1, 96, 96], 32, 1)), &LONG);
    // Three heads a group, heads of their own, widths that no kernel is made for.
    check(twins, shape([9, 3, 64, 64], 64, 1), &LONG);
    check(twins, shared(shape([9, 3, 64, 64], 64, 3)), &SHORT);
    check(twins, shape([16, 16, 48, 40], 16, 1), &LONG);
    check(twins, shape([96, 1, 192, 128], 64, 1), &LONG);
    // Absorbed MLA: values are some channels of the key.
    check(twins, shared(shape([16, 1, 160, 128], 64, 1)), &LONG);
    check(twins, shared(shape([64, 1, 576, 512], 64, 1)), &LONG);
    check(twins, shared(shape([16, 1, 576, 512], 16, 2)), &SHORT);
    check(twins, shared(shape([128, 1, 576, 512], 32, 1)), &SHORT);
    for page in [16, 32, 64, 128] {
        check(twins, eight_bits(shape(mfa, page, 1)), &LONG);
        check(twins, eight_bits(shared(shape(mfa, page, 1))), &LONG);
        check(twins, eight_bits(rotated(shape(mfa, page, 1))), &LONG);
    }
    check(twins, eight_bits(shape(mfa, 64, 4)), &SHORT);
    check(twins, eight_bits(shape([16, 1, 128, 128], 64, 1)), &[200; 300]);
    check(twins, eight_bits(shape([32, 8, 128, 128], 16, 2)), &SHORT);
    check(twins, eight_bits(shape([9, 3, 64, 64], 64, 1)), &LONG);
    check(twins, eight_bits(shape([6, 2, 192, 128], 32, 1)), &LONG);
    check(twins, eight_bits(shared(shape([16, 1, 128, 128], 64, 3))), &SHORT);
    check(twins, eight_bits(rotated(shape([16, 1, 128, 128], 64, 1))), &LONG);
    check(twins, eight_bits(shared(shape([64, 1, 576, 512], 64, 1))), &LONG);
    check(twins, eight_bits(shared(shape([16, 1, 576, 512], 16, 2))), &SHORT);
    for window in [1, 64, 100] {
        let windowed = |shape| windowed(window, shape);
        check(twins, windowed(shape(mfa, 64, 1)), &LONG);
        check(twins, windowed(shape(mfa, 32, 4)), &SHORT);
        check(twins, windowed(rotated(shape(mfa, 16, 2))), &SHORT);
        check(twins, windowed(shape([32, 8, 128, 128], 16, 1)), &LONG);
        check(twins, windowed(shape([9, 3, 64, 64], 32, 3)), &SHORT);
        check(twins, windowed(shared(shape([16, 1, 576, 512], 64, 1))), &LONG);
    }
    // Windows of several shares.
    check(twins, windowed(3000, shape([32, 8, 128, 128], 64, 1)), &LONG);
    for sizes in [mfa, [96, 1, 128, 128], [9, 3, 64, 64], [32, 8, 128, 128]] {
        check_with(twins, shape(sizes, 64, 1), &LONG, true);
        check_with(twins, shared(shape(sizes, 16, 3)), &SHORT, true);
    }
    check_with(twins, windowed(64, shape([32, 8, 128, 128], 16, 4)), &SHORT, true);
    check_with(twins, eight_bits(windowed(100, shape(mfa, 32, 2))), &SHORT, true);
    check(twins, eight_bits(windowed(64, rotated(shape(mfa, 64, 1)))), &LONG);
    check_with(twins, rotated(shape(mfa, 64, 1)), &LONG, true);
    check_with(twins, shared(shape([128, 1, 576, 512], 32, 1)), &SHORT, true);
    for rank in [1, 2, 4] {
        let factors = |heads, width, page, tokens| Shape {
            factors: Some(rank),
            ..shape([heads, 1, width, width], page, tokens)
        };
        check(twins, factors(91, 128, 64, 1), &LONG);
        check(twins, factors(16, 64, 16, 1), &LONG);
        check(twins, factors(5, 48, 128, 1), &LONG);
        check(twins, factors(64, 128, 32, 2), &SHORT);
        check(twins, factors(130, 64, 64, 3), &SHORT);
        check(twins, factors(16, 128, 64, 1), &LONG);
        check(twins, factors(16, 128, 16, 4), &SHORT);
        check(twins, factors(12, 96, 32, 3), &SHORT);
        check(twins, factors(24, 64, 64, 2), &SHORT);
        check(twins, windowed(100, factors(24, 64, 64, 2)), &SHORT);
        check_with(twins, factors(91, 128, 64, 1), &LONG, true);
        check_with(twins, factors(24, 64, 32, 2), &SHORT, true);
    }
    check(twins, Shape { factors: Some(2), ..shape([8, 1, 64, 64], 64, 1) }, &[300; 300]);
}

/// The rows `filled` of `values` in 8 bits among rows of NaN, on both devices; of side by side `planes` the columns, and of a head
/// of theirs.
fn eight_bit_cache(
    twins: &mut Twins<'_>,
    places: usize,
    planes: [[usize; 2]; 2],
    filled: &[u32],
    values: &[f32],
) -> [Tensor; 2] {
    let [[keys, _], [others, _]] = planes;
    let cols = keys + others;
    let [host, mut device] = twins.bytes(places, row_width(cols, DType::Fp8), 0xFF);
    // Neighbouring rows, and neighbouring blocks of a row, are of different sizes.
    let sized = |row: u32| {
        let of =
            move |(i, x): (usize, &f32)| x * 0.5f32.powi(((row as usize * 7 + i / SCALE_BLOCK) % 5) as i32);
        values[row as usize * cols..][..cols].iter().enumerate().map(of)
    };
    let rows: Vec<f32> = filled.iter().flat_map(|row| sized(*row)).collect();
    let rows = twins.of(filled.len(), cols, DType::F32, Gaps::None, &rows);
    let [at, _] = twins.indices(filled);
    let [elements, scales] = fp8::Rows::split(&host, cols);
    for (first, [cols, width]) in [0, keys].into_iter().zip(planes).filter(|(_, [cols, _])| *cols > 0) {
        let [from, to] = [&rows.host, &elements].map(|rows| rows.columns(first, cols));
        fp8::store(&from, &at, fp8::Rows { values: &to, scales: &scales }, fp8::sharing(width));
    }
    device.write_bytes(&host.to_bytes());
    [host, device]
}

fn check(twins: &mut Twins<'_>, shape: Shape, lengths: &[u32]) {
    check_with(twins, shape, lengths, false);
}

fn check_with(twins: &mut Twins<'_>, shape: Shape, lengths: &[u32], slopes: bool) {
    let Shape { heads, kv_heads, width, value_width, shared, rotate, fp8, page, tokens, window, factors } =
        shape;
    let few: Vec<u32>;
    let lengths = if twins.small() {
        // A few tiles each; of pages one size alone, which every form has. Of few heads as many sequences as make several tiles a CTA.
        if page != 64 {
            return;
        }
        let most = if heads > 2 { 4 } else { 67 };
        few = lengths.iter().take(most).map(|length| length.min(&600)).copied().collect();
        &few
    } else {
        lengths
    };
    let what = format!(
        "{heads}/{kv_heads} heads x {width}/{value_width}{}{}{}{}{}{}, {} sequences, pages of {page}, {tokens} tokens",
        if shared { ", shared" } else { "" },
        if rotate { ", rotated" } else { "" },
        if fp8 { ", fp8" } else { "" },
        window.map_or_else(String::new, |window| format!(", window of {window}")),
        if slopes { ", slopes" } else { "" },
        factors.map_or_else(String::new, |rank| format!(", {rank} terms")),
        lengths.len(),
    );
    let needed = |length: &u32| (*length as usize).div_ceil(page);
    let most = lengths.iter().map(needed).max().unwrap_or(0) + 1;
    let pages = lengths.iter().map(needed).sum::<usize>() + 3;
    let (rank, count) = (factors.unwrap_or(0), factors.unwrap_or(kv_heads));
    let [k_cols, v_cols] = [count * width, if shared { 0 } else { count * value_width }];
    let step = heads.next_multiple_of(8);
    let cols = k_cols + v_cols + 2 * rank * step;
    // Pages dealt from the end, every other one first; entries that are not used are no pages.
    let mut free: Vec<u32> = (0..pages as u32).rev().filter(|page| page % 2 == 0).collect();
    free.extend((0..pages as u32).filter(|page| page % 2 == 1));
    let mut free = free.into_iter();
    let mut tables = vec![u32::MAX; most * lengths.len()];
    let mut values = vec![f32::NAN; pages * page * cols];
    let mut filled_rows = Vec::new();
    for (sequence, length) in lengths.iter().enumerate() {
        for (entry, at) in tables[sequence * most..].iter_mut().zip(0..needed(length)) {
            let Some(page_id) = free.next() else { break };
            *entry = page_id;
            let rows = (*length as usize - at * page).min(page);
            // What no token sees stays NaN.
            let reach = window.map_or(usize::MAX, |window| window + tokens - 1);
            let unseen = (*length as usize).saturating_sub(reach).saturating_sub(at * page).min(rows);
            let filled = super::twin::random(u64::from(page_id) + 99, rows * cols);
            values[page_id as usize * page * cols..][unseen * cols..rows * cols]
                .copy_from_slice(&filled[unseen * cols..]);
            filled_rows.extend((unseen..rows).map(|row| (page_id as usize * page + row) as u32));
        }
    }
    let [host_cache, device_cache] = match fp8 {
        false => {
            let cache = twins.of(pages * page, cols, DType::Bf16, Gaps::Aligned, &values);
            [cache.host, cache.device]
        }
        true => {
            let planes = [[k_cols, width], [v_cols, value_width]];
            eight_bit_cache(twins, pages * page, planes, &filled_rows, &values)
        }
    };
    let rows = lengths.len() * tokens;
    let q = twins.random(rows, heads * width, DType::Bf16, Gaps::None);
    // As long as it has to be, and with YaRN's amplitude.
    let frequencies: Vec<f64> =
        (0..width / 2).map(|pair| 5e5f64.powf(-2.0 * pair as f64 / width as f64)).collect();
    let positions = lengths.iter().copied().max().unwrap_or(1) as usize;
    let table = RopeTable::of_frequencies(&frequencies, 1.1, positions);
    let rotate = rotate.then_some(&table);
    let slopes = slopes.then(|| {
        let slopes: Vec<f32> = (1..=heads).map(|head| (-8.0 * head as f32 / heads as f32).exp2()).collect();
        twins.of(1, heads, DType::F32, Gaps::None, &slopes)
    });
    for dtype in [DType::Bf16, DType::F32] {
        let mut out = twins.empty(rows, heads * value_width, dtype, Gaps::None);
        let mut lse = twins.empty(rows, heads, DType::F32, Gaps::None);
        let run = |cache: &Tensor, q: &Tensor, alibi: Option<&Tensor>, out: &mut Tensor, lse: &mut Tensor| {
            let (rows, scales) = fp8::rows_of(cache, cols);
            let k = rows.columns(0, k_cols);
            let v = (!shared).then(|| rows.columns(k_cols, v_cols));
            let a = [0, 1].map(|at| rows.columns(k_cols + v_cols + at * rank * step, rank * step));
            let factor = |tensor| Heads { tensor, count, width: heads, stride: step };
            let head = |tensor, width| Heads { tensor, count, width, stride: width };
            let cache = Cache {
                k: head(&k, width),
                v: v.as_ref().map(|v| head(v, value_width)),
                scales: scales.as_ref(),
                scale: (width as f32).powf(-0.5),
                rotate,
                factors: factors.map(|_| a.each_ref().map(factor)),
                alibi,
            };
            let arena = Arena::on(q.device()).unwrap_or_else(|error| error.raise());
            let batch = Batch::new(&arena, shape, lengths, &tables);
            // The second starts while the first still runs.
            attend(q, &cache, &batch, out, Some(lse));
            attend(q, &cache, &batch, out, Some(lse));
            batch.plans_alike()
        };
        let [there, here] =
            [slopes.as_ref().map(|slopes| &slopes.device), slopes.as_ref().map(|slopes| &slopes.host)];
        run(&host_cache, &q.host, here, &mut out.host, &mut lse.host);
        let alike = run(&device_cache, &q.device, there, &mut out.device, &mut lse.device);
        twins.compare(format!("{what}, {dtype}"), &out, LIMIT);
        // Rows without keys are minus infinity in both.
        let finite = |values: Vec<f32>| -> Vec<f32> {
            values.iter().map(|x| if *x == f32::NEG_INFINITY { 1e3 } else { *x }).collect()
        };
        let (got, want) = (finite(lse.device.to_vec()), finite(lse.host.to_vec()));
        twins.compare_values(format!("log-sum-exp, {what}, {dtype}"), &got, &want, LIMIT);
        let alike = if alike == Some(false) { 0.0 } else { 1.0 };
        twins.compare_values(format!("plan, {what}"), &[alike], &[1.0], 0.0);
    }
}
