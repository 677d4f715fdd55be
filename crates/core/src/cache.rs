//! The geometry of a KV cache: which planes one attention layer stores for each token.
//!
//! A cache is not assumed to hold keys and values. A layer names its planes; allocators, schedulers and planners
//! multiply widths and never ask what a plane means.

use crate::DType;
use serde::Serialize;

/// One array that a layer keeps per token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Plane {
    /// What the plane holds, for people and for look-up: `k`, `v`, `latent`, ...
    pub name: &'static str,
    /// Elements per token.
    pub width: usize,
}

/// Neighbouring columns of a cache row of [`DType::Fp8`] that share a scale: the power of two by which they are to be
/// multiplied, a byte that holds its exponent plus 127 (e8m0 of the OCP microscaling formats, arXiv 2310.10537).
pub const SCALE_BLOCK: usize = 64;

/// What 8-bit elements of a row and their scales take is a multiple of this many bytes.
const ROW_BYTES: usize = 16;

/// Columns that a cache's tensor needs for rows of `elements`: these and, with [`DType::Fp8`], a byte for the scale of each
/// [`SCALE_BLOCK`] of them. In the tensor's memory the elements of all rows come first, so that rows lie at whole lines, and then
/// the scales of all rows.
pub const fn row_width(elements: usize, dtype: DType) -> usize {
    match dtype {
        DType::F32 | DType::Bf16 => elements,
        DType::Fp8 => (elements + elements.div_ceil(SCALE_BLOCK)).next_multiple_of(ROW_BYTES),
    }
}

/// The planes of one layer, in storage order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CacheLayout {
    planes: Vec<Plane>,
}

/// A layout that cannot be stored.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Two planes share a name.
    #[error("cache plane `{0}` is declared twice")]
    Duplicate(&'static str),
    /// The sum of the widths does not fit the address space.
    #[error("the cache planes are too wide: their elements per token overflow")]
    Overflow,
}

impl CacheLayout {
    /// A layout of `planes`; those of width 0 are left out.
    pub fn new(planes: impl IntoIterator<Item = Plane>) -> Result<Self, LayoutError> {
        let mut kept: Vec<Plane> = Vec::new();
        let mut elements = 0usize;
        for plane in planes.into_iter().filter(|plane| plane.width > 0) {
            if kept.iter().any(|other| other.name == plane.name) {
                return Err(LayoutError::Duplicate(plane.name));
            }
            elements = elements.checked_add(plane.width).ok_or(LayoutError::Overflow)?;
            kept.push(plane);
        }
        elements.checked_mul(8).ok_or(LayoutError::Overflow)?;
        Ok(Self { planes: kept })
    }

    /// The planes in storage order.
    pub fn planes(&self) -> &[Plane] {
        &self.planes
    }

    /// Elements stored per token by one layer.
    pub fn elements_per_token(&self) -> usize {
        self.planes.iter().map(|plane| plane.width).sum()
    }

    /// Bytes stored per token by one layer.
    pub fn bytes_per_token(&self, dtype: DType) -> usize {
        row_width(self.elements_per_token(), dtype) * dtype.bytes()
    }
}
