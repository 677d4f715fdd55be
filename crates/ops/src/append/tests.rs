use super::*;
use crate::{
    rope::Pairing,
    testing::{assert_close, random, to_f64},
};
use keyfold_core::DType;
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
