use super::*;
use crate::{
    rope::Pairing,
    testing::{assert_close, random, to_f64},
};
use keyfold_core::{DType, row_width};
use keyfold_tensor::Arena;

const THETA: f64 = 1e4;

#[test]
fn queries_and_keys_are_rotated_and_rows_written() {
    let arena = Arena::poisoned();
    let (tokens, heads, kv_heads, width, places) = (5, 4, 2, 8, 11);
    let table = RopeTable::new(width, THETA, 20).with_pairing(Pairing::HalfSplit);
    let (positions, rows) = (vec![3, 0, 19, 7, 7], vec![10, 0, 4, 5, 2]);
    let [at, to] = [&positions, &rows].map(|values| Indices::new(&arena, values.clone()));
    let [q, k, v] = [heads, kv_heads, kv_heads].map(|count| random(count as u64, tokens * count * width));
    for (rope, raw_keys) in [(None, false), (Some(&table), false), (Some(&table), true)] {
        let tensor = |values: &[f32]| arena.tensor_of(tokens, values.len() / tokens, values);
        let (q_at, k_at, v_at) = (tensor(&q), tensor(&k), tensor(&v));
        let mut keys = arena.zeros(places, kv_heads * width, DType::F32);
        let mut values = keys.copied_to(&arena);
        let places = Places { positions: &at, rows: &to, rope, raw_keys, scales: None };
        let [q_heads, k_heads] = [(&q_at, heads), (&k_at, kv_heads)].map(|(x, n)| Heads::packed(x, n));
        append(q_heads, k_heads, Some(&v_at), places, &mut keys, Some(&mut values));
        let rotated = |values: &[f32], count, rotates: bool| match rope.filter(|_| rotates) {
            None => to_f64(values),
            Some(_) => reference::rotated(values, &positions, count, width, THETA),
        };
        assert_close("queries", &q_at.to_vec(), &rotated(&q, heads, true), 3e-7);
        let want = rotated(&k, kv_heads, !raw_keys);
        for (token, row) in rows.iter().enumerate() {
            let want = &want[token * kv_heads * width..][..kv_heads * width];
            assert_close("a key", &keys.row_range(*row as usize, 1).to_vec(), want, 3e-7);
            assert_eq!(values.row_range(*row as usize, 1).to_vec(), v_at.row_range(token, 1).to_vec());
        }
        assert_eq!(keys.row_range(1, 1).to_vec(), vec![0.0; kv_heads * width], "a row that nothing goes to");
    }
}

#[test]
fn heads_in_8_bits_have_scales_by_their_widths() {
    let arena = Arena::new();
    let (tokens, kv_heads, places) = (2, 2, 5);
    let [positions, rows] = [vec![0, 1], vec![4, 1]].map(|values| Indices::new(&arena, values));
    // Widths of keys, and of values if there are any.
    for (width, value_width) in [(128, Some(256)), (256, None), (192, Some(128)), (64, Some(64))] {
        let [k_cols, v_cols] = [kv_heads * width, kv_heads * value_width.unwrap_or(0)];
        let elements = k_cols + v_cols;
        let memory = arena.zeros(places, row_width(elements, DType::Fp8), DType::Fp8);
        let [cached, scales] = fp8::Rows::split(&memory, elements);
        // Every block is of another size.
        let drawn = |cols: usize| -> Vec<f32> {
            (0..tokens * cols).map(|i| 448.0 * 0.5f32.powi((i / 64 % 5) as i32)).collect()
        };
        let tensor = |cols: usize| arena.tensor_of(tokens, cols, &drawn(cols));
        let (q, k, v) = (tensor(k_cols), tensor(k_cols), value_width.map(|_| tensor(v_cols)));
        let at =
            Places { positions: &positions, rows: &rows, rope: None, raw_keys: false, scales: Some(&scales) };
        let mut values = value_width.map(|_| cached.columns(k_cols, v_cols));
        let heads = [&q, &k].map(|x| Heads::packed(x, kv_heads));
        append(heads[0], heads[1], v.as_ref(), at, &mut cached.columns(0, k_cols), values.as_mut());
        for (token, place) in [4, 1].into_iter().enumerate() {
            let want = |x: &Tensor, width: usize| -> Vec<u8> {
                let row = x.row_range(token, 1).to_vec();
                let scales = |group: &[f32]| {
                    let most = group.iter().fold(0f32, |most, x| x.max(most));
                    vec![((most / 448.0).log2() as i32 + 127) as u8; group.len() / 64]
                };
                row.chunks(fp8::sharing(width)).flat_map(scales).collect()
            };
            let mut all = want(&k, width);
            all.extend(v.iter().flat_map(|v| want(v, value_width.unwrap_or(0))));
            assert_eq!(scales.columns(place, 1).to_bytes(), all, "{width}, {value_width:?}");
        }
        assert!(
            scales.columns(0, 1).to_bytes().iter().all(|scale| *scale == 0),
            "a row that nothing goes to"
        );
    }
}
