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

pub use precision::{Precision, describe, precision, set_precision};
pub use view::{Element, View, ViewMut};

use keyfold_core::DType;

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
        if amx::takes(&product) {
            return amx::run(product, parts);
        }
    }
    f32::run(pulp::Arch::new(), product);
}

/// Whether few rows by the transpose of a weight of `features` rows go through tiles without packing the weight.
pub(crate) fn few_rows_on_tiles(weight: DType, features: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    let found = weight == DType::Bf16 && features >= amx::few::FEATURES && precision::parts(true).is_some();
    #[cfg(not(target_arch = "x86_64"))]
    let found = false;
    found
}
