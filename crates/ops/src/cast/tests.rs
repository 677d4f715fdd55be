use super::*;
use crate::{
    simd::on_every_isa,
    testing::{random, strided},
};
use keyfold_core::DType;
use keyfold_tensor::{Arena, bf16};

/// Every exponent, mantissas at and around ties.
fn hard_values() -> Vec<f32> {
    let mut values = Vec::new();
    for high in (0..=0xffffu32).step_by(37) {
        for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
            values.push(f32::from_bits(high << 16 | low));
        }
    }
    values
}

#[test]
fn rounds_to_nearest_even() {
    on_every_isa(|| {
        let arena = Arena::poisoned();
        let values = hard_values();
        let x = arena.tensor_of(1, values.len(), &values);
        let mut out = arena.tensor(1, values.len(), DType::Bf16);
        copy(&x, &mut out);
        for (x, got) in values.iter().zip(out.to_vec()) {
            assert_eq!(got.is_nan(), x.is_nan(), "{x}");
            if x.is_finite() {
                assert_eq!((got.to_bits() >> 16) as u16, reference::nearest(*x), "{x}");
            } else if x.is_infinite() {
                assert_eq!(got, *x);
            }
            assert!(x.is_nan() || got == bf16::from_f32(*x).to_f32());
        }
    });
}

#[test]
fn all_pairs_of_types_and_strides() {
    on_every_isa(|| {
        let arena = Arena::poisoned();
        for (rows, cols) in [(1, 1), (63, 5), (65, 300), (3, 0)] {
            let values: Vec<f32> =
                random(1, rows * cols).iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
            for from in [DType::F32, DType::Bf16] {
                for to in [DType::F32, DType::Bf16] {
                    let mut x = arena.tensor(rows, cols + 5, from).columns(3, cols);
                    x.write(&values);
                    let wide = arena.tensor(rows, cols + 9, to);
                    let mut out = wide.columns(4, cols);
                    copy(&x, &mut out);
                    assert_eq!(out.to_vec(), values, "{from} to {to}");
                    assert!(wide.columns(0, 4).to_vec().iter().all(|x| x.is_nan()), "wrote beside the view");
                }
            }
        }
        let same = strided(&arena, 5, 7, &random(2, 35));
        copy(&same, &mut same.clone());
        assert_eq!(same.to_vec(), random(2, 35));
    });
}
