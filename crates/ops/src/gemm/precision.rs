//! How exactly products are computed.

use std::sync::atomic::{AtomicU8, Ordering};

/// How f32 operands enter a product. Sums are always f32.
///
/// As PyTorch's `float32_matmul_precision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Precision {
    /// As f32: with vectors of f32, or, by a bf16 operand, as three bf16 that together are the f32.
    #[default]
    Highest,
    /// As a bf16 and the bf16 of the rest, without the product of both rests: about 16 bits. Values beyond bf16's
    /// range (3.39e38) overflow.
    High,
    /// As bf16: 8 bits.
    Medium,
}

/// [`Precision`] as a number.
static CHOSEN: AtomicU8 = AtomicU8::new(Precision::Highest as u8);

/// Chooses the precision of all products of this process from now on.
///
/// Only processors with AMX compute at less than [`Precision::Highest`]; elsewhere the choice has no effect. At
/// [`Precision::Medium`] attention of prompts over a cache computes its products so, too.
///
/// ```
/// use keyfold_ops::gemm::{Precision, describe, precision, set_precision};
///
/// assert_eq!(precision(), Precision::Highest);
/// set_precision(Precision::High);
/// assert_eq!(precision(), Precision::High);
/// println!("{}", describe());
/// ```
pub fn set_precision(precision: Precision) {
    CHOSEN.store(precision as u8, Ordering::Relaxed);
}

/// The precision last chosen.
pub fn precision() -> Precision {
    const HIGH: u8 = Precision::High as u8;
    const MEDIUM: u8 = Precision::Medium as u8;
    match CHOSEN.load(Ordering::Relaxed) {
        HIGH => Precision::High,
        MEDIUM => Precision::Medium,
        _ => Precision::Highest,
    }
}

/// What computes products now, in words.
pub fn describe() -> &'static str {
    match (reduced(), pulp::Arch::new().dispatch(Lanes)) {
        (Some(Precision::Medium), _) => "AMX, bf16",
        (Some(_), _) => "AMX, three bf16 products",
        (None, 16) => "f32, AVX-512",
        (None, 8) => "f32, AVX2",
        (None, 4) => "f32, 128-bit vectors",
        (None, _) => "f32, scalar",
    }
}

struct Lanes;

impl pulp::WithSimd for Lanes {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> usize {
        S::F32_LANES
    }
}

/// The chosen precision where it is below `Highest` and can be had.
fn reduced() -> Option<Precision> {
    let precision = precision();
    #[cfg(target_arch = "x86_64")]
    let found = precision != Precision::Highest && super::amx::available();
    #[cfg(not(target_arch = "x86_64"))]
    let found = false;
    found.then_some(precision)
}

/// What the f32 operand of a product becomes under the chosen precision, if it is not computed in f32. An f32 is three
/// bf16 exactly, so a product with an operand that is bf16 itself loses nothing.
#[cfg(target_arch = "x86_64")]
pub(super) fn parts(by_bf16: bool) -> Option<super::amx::Parts> {
    use super::amx::{Parts, available};
    let parts = match precision() {
        Precision::Medium => Parts::One,
        Precision::High => Parts::Two,
        Precision::Highest if by_bf16 => Parts::Three,
        Precision::Highest => return None,
    };
    available().then_some(parts)
}
