use super::*;
use crate::{
    simd::on_every_isa,
    testing::{assert_close, assert_gradient, random, strided, to_f64, weigh},
};
use keyfold_tensor::Arena;

const PAIRINGS: [Pairing; 2] = [Pairing::HalfSplit, Pairing::Interleaved];
const THETA: f64 = 10_000.0;

#[test]
fn inverse_is_the_gradient() {
    let (heads, cols) = (Heads { count: 2, stride: 7, offset: 1 }, 14);
    let (x, d_out) = (to_f64(&random(1, 3 * cols)), to_f64(&random(2, 3 * cols)));
    for pairing in PAIRINGS {
        let rope = reference::Rope { cols, heads, width: 6, theta: THETA, pairing };
        let apply = |x: &[f64], inverse| rope.apply(x, |t| t + 5, inverse);
        assert_gradient("d_x", &apply(&d_out, true), &x, |x| weigh(&apply(x, false), &d_out));
    }
}

#[test]
fn forward_and_inverse() {
    on_every_isa(|| {
        let arena = Arena::poisoned();
        // Tokens, width, heads, columns.
        let cases = [
            (1, 2, Heads::adjacent(1, 2), 2),
            (63, 34, Heads { count: 3, stride: 40, offset: 5 }, 121),
            (65, 64, Heads { count: 4, stride: 192, offset: 128 }, 768),
            (7, 256, Heads::adjacent(2, 256), 512),
        ];
        for ((tokens, width, heads, cols), pairing) in
            cases.into_iter().flat_map(|case| PAIRINGS.map(|pairing| (case, pairing)))
        {
            let table = RopeTable::new(width, THETA, 100).with_pairing(pairing);
            let of: Vec<u32> = (0..tokens as u32).map(|t| t * 37 % 100).collect();
            let of = Indices::new(&arena, of);
            for positions in [Positions::Rows { seq: 13 }, Positions::From(3), Positions::Of(&of)] {
                let values = random(1, tokens * cols);
                let x = strided(&arena, tokens, cols, &values);
                let rope = reference::Rope { cols, heads, width, theta: THETA, pairing };
                let want = |inverse| rope.apply(&to_f64(&values), |row| positions.at(row), inverse);

                let mut out = strided(&arena, tokens, cols, &values);
                apply_into(&x, &mut out, heads, &table, positions, false);
                assert_close("out", &out.to_vec(), &want(false), 3e-7);
                assert_eq!(x.to_vec(), values);

                apply(&mut out, heads, &table, positions, true);
                assert_close("there and back", &out.to_vec(), &to_f64(&values), 5e-7);
                apply(&mut x.clone(), heads, &table, positions, true);
                assert_close("inverse", &x.to_vec(), &want(true), 3e-7);
            }
        }
    });
}

#[test]
fn positions_of_rows() {
    assert_eq!(Positions::Rows { seq: 4 }.at(9), 1);
    assert_eq!(Positions::From(10).at(9), 19);
    let of = Indices::new(&Arena::new(), vec![5, 6]);
    assert_eq!(Positions::Of(&of).at(1), 6);
    let table = RopeTable::new(4, 1.0, 3);
    assert_eq!((table.width(), table.positions()), (4, 3));
    assert_eq!(table.cos(2), [2f64.cos() as f32; 2]);
    assert_eq!(table.sin(2), [2f64.sin() as f32; 2]);
}

#[test]
#[should_panic(expected = "rope: position 4 of a table of 4")]
fn position_beyond_the_table() {
    let mut x = strided(&Arena::new(), 2, 4, &[0.0; 8]);
    apply(&mut x, Heads::adjacent(1, 4), &RopeTable::new(4, THETA, 4), Positions::From(3), false);
}
