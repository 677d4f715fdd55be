//! The lanes, `exp` and `dot` against double precision, with the best instruction set and without vectors.

use super::*;
use pulp::{Arch, Simd, WithSimd};

struct Exp<'a>(&'a [f32], &'a mut [f32]);
impl WithSimd for Exp<'_> {
    type Output = f32;
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let (x, y) = (self.0.as_ptr(), self.1.as_mut_ptr());
        for_lanes(
            simd,
            self.0.len(),
            // SAFETY: both slices have that length.
            |lanes| unsafe { lanes.store(simd, y, exp(simd, lanes.load(simd, x))) },
        );
        // SAFETY: as above.
        unsafe { dot(simd, self.0.len(), x, x) }
    }
}

fn check(run: impl Fn(Exp<'_>) -> f32) {
    let x: Vec<f32> = (0..100_003).map(|i| (i as f32 - 87_000.0) * 1e-3).collect();
    let mut y = vec![f32::NAN; x.len()];
    let squares = run(Exp(&x, &mut y));
    for (x, y) in x.iter().zip(&y) {
        let want = f64::from(*x).exp();
        assert!((f64::from(*y) - want).abs() <= 1.5e-7 * want, "exp({x}) = {y}, want {want}");
    }
    let want: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
    assert!((f64::from(squares) - want).abs() < 1e-5 * want, "dot = {squares}, want {want}");

    let special = [f32::NEG_INFINITY, -1e30, -88.0, 89.0, f32::INFINITY, f32::NAN, 0.0];
    let mut y = [0.0; 7];
    run(Exp(&special, &mut y));
    assert_eq!(y[..3], [0.0; 3]);
    assert_eq!(y[3..5], [f32::INFINITY; 2]);
    assert!(y[5].is_nan());
    assert_eq!(y[6], 1.0);
}

#[test]
fn exp_and_dot() {
    check(|op| Arch::new().dispatch(op));
    check(|op| op.with_simd(pulp::Scalar::new()));
}

#[test]
fn lanes_stay_within_the_row() {
    for len in [0, 1, 15, 16, 17, 63, 64, 65, 100] {
        let x: Vec<f32> = (0..len).map(|i| 0.01 * i as f32).collect();
        let mut y = vec![-1.0; len + 64];
        Arch::new().dispatch(Exp(&x, &mut y));
        assert!(y[..len].iter().all(|y| *y >= 1.0));
        assert!(y[len..].iter().all(|y| *y == -1.0));
    }
}
