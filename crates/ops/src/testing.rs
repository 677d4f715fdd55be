//! Helpers shared by the ops' tests.

pub(crate) use crate::selftest::random;

use keyfold_core::DType;
use keyfold_tensor::{Arena, Tensor};

/// Panics when `got` differs from `want` by more than `rel` times the largest magnitude in `want`.
#[track_caller]
pub(crate) fn assert_close(name: &str, got: &[f32], want: &[f64], rel: f64) {
    assert_eq!(got.len(), want.len(), "{name}: number of values");
    let scale = want.iter().fold(1e-6f64, |max, x| max.max(x.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*g) - w).abs();
        assert!(
            error <= rel * scale,
            "{name}[{i}]: got {g}, want {w}, error {error:.3e} of scale {scale:.3e}"
        );
    }
}

/// `values` in double precision.
pub(crate) fn to_f64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|x| f64::from(*x)).collect()
}

/// A column view with gaps between its rows and unspecified contents.
pub(crate) fn empty(arena: &Arena, rows: usize, cols: usize) -> Tensor {
    arena.tensor(rows, cols + 8, DType::F32).columns(3, cols)
}

/// A column view with gaps between its rows that holds `values`.
pub(crate) fn strided(arena: &Arena, rows: usize, cols: usize, values: &[f32]) -> Tensor {
    let mut view = empty(arena, rows, cols);
    view.write(values);
    view
}

/// Panics when `gradient` is not that of `f` at `x`, by central differences.
#[track_caller]
pub(crate) fn assert_gradient(name: &str, gradient: &[f64], x: &[f64], f: impl Fn(&[f64]) -> f64) {
    const STEP: f64 = 1e-5;
    assert_eq!(gradient.len(), x.len(), "{name}: number of values");
    let mut at = x.to_vec();
    let scale = gradient.iter().fold(1e-3f64, |max, x| max.max(x.abs()));
    for i in 0..x.len() {
        at[i] = x[i] + STEP;
        let above = f(&at);
        at[i] = x[i] - STEP;
        let want = (above - f(&at)) / (2.0 * STEP);
        at[i] = x[i];
        let error = (gradient[i] - want).abs();
        assert!(error <= 1e-7 * scale, "{name}[{i}]: got {}, want {want}, error {error:.3e}", gradient[i]);
    }
}

/// Dot product: a loss with the gradient `weights`.
pub(crate) fn weigh(values: &[f64], weights: &[f64]) -> f64 {
    assert_eq!(values.len(), weights.len(), "weigh: number of values");
    values.iter().zip(weights).map(|(v, w)| v * w).sum()
}
