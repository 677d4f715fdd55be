//! Matrix products of f32 matrices with any strides.
//!
//! `out (+)= alpha a b`. The work is split over the threads of the current rayon pool by blocks of `out`, never along
//! the summed dimension: an element's value does not depend on the number of threads.

#[cfg(target_arch = "x86_64")]
mod amx;
mod f32;
mod precision;
#[cfg(test)]
mod reference;
mod scratch;
mod split;
#[cfg(test)]
mod tests;
mod view;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
pub(crate) use amx::blocks;
pub use precision::{Precision, describe, precision, set_precision};
pub use view::{Element, View, ViewMut};

use half::bf16;
use keyfold_core::DType;
use pulp::Simd;

/// `out = alpha a b`, or `out += alpha a b` with `accumulate`.
///
/// # Shapes
/// `a` [m, k], `b` [k, n], `out` [m, n].
///
/// # Panics
/// When the shapes do not match.
pub fn gemm<B: Element>(out: ViewMut<'_>, accumulate: bool, alpha: f32, a: View<'_>, b: View<'_, B>) {
    let (m, n, k) = (out.rows(), out.cols(), a.cols());
    assert!(
        a.rows() == m && b.rows() == k && b.cols() == n,
        "gemm: [{}, {}] x [{}, {}] into [{m}, {n}]",
        a.rows(),
        a.cols(),
        b.rows(),
        b.cols()
    );
    if m == 0 || n == 0 {
        return;
    }
    let product = split::Product { out, accumulate, alpha, a, b };
    #[cfg(target_arch = "x86_64")]
    if let Some(parts) = precision::parts(B::IS_BF16)
        && k > 0
    {
        if amx::few::takes(&product) {
            return amx::few::run(product, parts);
        }
        if amx::many::takes(&product) {
            return amx::many::run_one(product, parts);
        }
        if amx::takes(&product) {
            return amx::run(product, parts);
        }
    }
    f32::run(pulp::Arch::new(), product);
}

/// `out (+)= a weight^T` into columns of its own for every target: a weight's rows read what is packed once.
///
/// # Shapes
/// `a` [m, k], `weight` [n, k], `out` [m, n].
pub(crate) struct Target<'a> {
    pub(crate) weight: View<'a, bf16>,
    pub(crate) out: ViewMut<'a>,
    pub(crate) accumulate: bool,
}

/// Computes all targets; the same bits as [`gemm`] of each.
pub(crate) fn gemm_targets(a: View<'_>, targets: Vec<Target<'_>>) {
    #[cfg(target_arch = "x86_64")]
    if let Some(parts) = precision::parts(true)
        && a.cols > 0
        && a.rows > FEW_ROWS
        && a.col_stride == 1
    {
        return amx::many::run(a, 1.0, &targets, parts);
    }
    for Target { weight, out, accumulate } in targets {
        gemm(out, accumulate, 1.0, a, weight.t());
    }
}

/// The activation of a gated MLP.
pub(crate) trait Gate: Send + Sync {
    /// What a gate lets through.
    fn gated<S: Simd>(simd: S, gate: S::f32s, up: S::f32s) -> S::f32s;
}

/// `out = gated(x gate^T, x up^T) down^T` in one go where that pays; false where it was not done. The same bits as step
/// by step.
///
/// # Shapes
/// `x` [m, k], `gate` and `up` [width, k], `down` [n, width], `out` [m, n].
pub(crate) fn gated_mlp<G: Gate>(
    x: View<'_>,
    [gate, up, down]: [View<'_, bf16>; 3],
    out: ViewMut<'_>,
) -> bool {
    #[cfg(target_arch = "x86_64")]
    if let (Some(parts), Some(simd)) = (precision::parts(true), pulp::x86::V4::try_new())
        && x.rows > FEW_ROWS
        && x.col_stride == 1
        && x.cols > 0
        && gate.rows > 0
    {
        amx::gated::run::<G>(simd, x, amx::gated::Weights { gate, up, down }, out, parts);
        return true;
    }
    false
}

/// Whether other products than those of weights are computed on tiles, as bf16: where that was asked for and can be had.
pub(crate) fn bf16_on_tiles() -> bool {
    #[cfg(target_arch = "x86_64")]
    let found = precision() == Precision::Medium && amx::available();
    #[cfg(not(target_arch = "x86_64"))]
    let found = false;
    found
}

/// Whether tests of what runs on tiles can.
#[cfg(test)]
pub(crate) fn tests_have_tiles() -> bool {
    #[cfg(target_arch = "x86_64")]
    let found = amx::available();
    #[cfg(not(target_arch = "x86_64"))]
    let found = false;
    found
}

/// Rows that are always worked on weight by weight.
pub(crate) const FEW_ROWS: usize = 64;

/// Whether few rows by the transpose of a weight of `features` rows go through tiles without packing the weight.
pub(crate) fn few_rows_on_tiles(weight: DType, features: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    let found = weight == DType::Bf16 && features >= amx::few::FEATURES && precision::parts(true).is_some();
    #[cfg(not(target_arch = "x86_64"))]
    let found = false;
    found
}
