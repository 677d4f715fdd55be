//! The definition, value by value; what the host has.

use super::{EXPONENTS, Rows};
use crate::indices::Indices;
use keyfold_core::SCALE_BLOCK;
use keyfold_tensor::{Tensor, e4m3};

/// The exponent of the scale of a block whose largest absolute value is `most`.
fn exponent(most: f32) -> i32 {
    let [least, largest] = EXPONENTS;
    let fits = |exponent: &i32| most <= e4m3::MAX * 2f32.powi(*exponent);
    (least..largest).find(fits).unwrap_or(largest)
}

/// See [`super::store`].
pub(super) fn store(x: &Tensor, at: &Indices, out: Rows<'_>, block: usize, sharing: usize) {
    for (row, at) in x.to_vec().chunks(x.cols().max(1)).zip(at.values()) {
        let of = |columns: &[f32]| exponent(columns.iter().fold(0.0, |most, x| x.abs().max(most)));
        let same = |columns: &[f32]| vec![of(columns); columns.len().div_ceil(SCALE_BLOCK)];
        let exponents: Vec<i32> = row.chunks(sharing).flat_map(same).collect();
        let values = row.iter().enumerate();
        let values = values
            .map(|(i, x)| e4m3::from_f32(x * 2f32.powi(-exponents[i / SCALE_BLOCK])))
            .collect::<Vec<_>>();
        let at = *at as usize;
        out.values.row_range(at, 1).write_bytes(&values);
        let scales: Vec<u8> = exponents.iter().map(|exponent| (exponent + 127) as u8).collect();
        out.scales.row_range(block, scales.len()).columns(at, 1).write_bytes(&scales);
    }
}

/// See [`super::load`].
pub(super) fn load(rows: Rows<'_>, at: &Indices, out: &mut Tensor, block: usize) {
    let values: Vec<f32> = at.values().iter().flat_map(|at| row(rows, *at as usize, block)).collect();
    out.write(&values);
}

/// The values of row `at`, whose columns begin with `block`.
pub(super) fn row(rows: Rows<'_>, at: usize, block: usize) -> Vec<f32> {
    let [least, largest] = EXPONENTS;
    let blocks = rows.values.cols().div_ceil(SCALE_BLOCK);
    let scales = rows.scales.row_range(block, blocks).columns(at, 1).to_bytes();
    let values = rows.values.row_range(at, 1).to_vec();
    let scale = |i: usize| 2f32.powi((i32::from(scales[i / SCALE_BLOCK]) - 127).clamp(least, largest));
    values.iter().enumerate().map(|(i, x)| x * scale(i)).collect()
}
