use super::*;
use crate::testing::{empty, random, strided};
use keyfold_core::DType;
use keyfold_tensor::{Arena, bf16};

#[test]
fn rows_go_to_their_places_and_no_others_change() {
    let arena = Arena::poisoned();
    for (at, places, cols) in
        [(vec![], 0, 3), (vec![0], 1, 1), (vec![5, 6, 7, 2, 9, 0], 11, 17), (vec![3, 2, 1, 0], 4, 64)]
    {
        let (values, before) = (random(1, at.len() * cols), random(2, places * cols));
        let x = strided(&arena, at.len(), cols, &values);
        for dtype in [DType::F32, DType::Bf16] {
            let mut want = reference::rows(&values, &at, &before, cols);
            let mut out = match dtype {
                DType::F32 => empty(&arena, places, cols),
                dtype => arena.tensor(places, cols, dtype),
            };
            out.write(&before);
            rows(&x, &Indices::new(&arena, at.clone()), &mut out);
            if dtype == DType::Bf16 {
                want.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
            }
            assert_eq!(out.to_vec(), want, "{} rows as {dtype}", at.len());
        }
    }
}

#[test]
#[should_panic(expected = "a place is not below 4")]
fn a_place_beyond_the_end() {
    let arena = Arena::new();
    rows(&arena.zeros(1, 2, DType::F32), &Indices::new(&arena, vec![4]), &mut arena.zeros(4, 2, DType::F32));
}
