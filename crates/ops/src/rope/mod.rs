//! Rotary position embedding (RoPE, arXiv 2104.09864): rotates pairs of channels by an angle that grows with the position.
//!
//! The pair `(a, b)` becomes `(a cos - b sin, b cos + a sin)`. A rotation is orthogonal: the backward of an op here is the
//! same op with `inverse` flipped, applied to the gradient.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod reference;
mod table;
#[cfg(test)]
mod tests;

pub use table::{Pairing, RopeTable};

use crate::{dispatch::by_device, indices::Indices};
use keyfold_tensor::Tensor;

/// The position of each token row.
#[derive(Clone, Copy, Debug)]
pub enum Positions<'a> {
    /// Sequences of `seq` rows one after the other: row t is at `t % seq`.
    Rows {
        /// Rows of one sequence.
        seq: usize,
    },
    /// One sequence that goes on after so many earlier tokens: row t is at `past + t`.
    From(usize),
    /// Row t is at the t-th of these (packed documents, a batch of sequences of different lengths).
    Of(&'a Indices),
}

impl Positions<'_> {
    /// Position of token row `row`.
    #[inline(always)]
    pub fn at(self, row: usize) -> usize {
        match self {
            Self::Rows { seq } => row % seq,
            Self::From(past) => past + row,
            Self::Of(positions) => positions.values()[row] as usize,
        }
    }

    /// Panics unless these are positions for `rows` rows, all below `limit`.
    fn check(self, op: &str, rows: usize, limit: usize) {
        let end = match self {
            Self::Rows { seq } => {
                assert!(seq > 0 || rows == 0, "{op}: sequences of no rows");
                seq.min(rows)
            }
            Self::From(past) => past + rows,
            Self::Of(positions) => {
                assert_eq!(positions.len(), rows, "{op}: one position per row");
                positions.values().iter().max().map_or(0, |last| *last as usize + 1)
            }
        };
        assert!(rows == 0 || end <= limit, "{op}: position {} of a table of {limit}", end.saturating_sub(1));
    }
}

/// Where the rotated channels of each head lie in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Number of heads.
    pub count: usize,
    /// Channels from one head's start to the next.
    pub stride: usize,
    /// First rotated channel within a head; the table's width says how many follow.
    pub offset: usize,
}

impl Heads {
    /// `count` adjacent heads of `width` channels each, rotated from their first channel.
    pub fn adjacent(count: usize, width: usize) -> Self {
        Self { count, stride: width, offset: 0 }
    }
}

/// Rotates `x` in place, backwards when `inverse` is set. Channels outside the rotated ones keep their values.
///
/// # Shapes
/// - x: `[tokens, cols]` with `(heads.count - 1) * heads.stride + heads.offset + table.width() <= cols`
///
/// # Panics
/// When a head leaves the row or a position the table.
pub fn apply(x: &mut Tensor, heads: Heads, table: &RopeTable, positions: Positions<'_>, inverse: bool) {
    apply_into(&x.clone(), x, heads, table, positions, inverse);
}

/// Rotates the heads of `x` into the same places of `out`. Channels of `out` outside the rotated ones are left alone.
/// `out` may be `x`.
///
/// # Shapes
/// - x, out: `[tokens, cols]`, as for [`apply`]
///
/// # Panics
/// When the shapes differ, a head leaves the row or a position the table.
pub fn apply_into(
    x: &Tensor,
    out: &mut Tensor,
    heads: Heads,
    table: &RopeTable,
    positions: Positions<'_>,
    inverse: bool,
) {
    assert_eq!((out.rows(), out.cols()), (x.rows(), x.cols()), "rope: out is not shaped like x");
    let end = heads.count.saturating_sub(1) * heads.stride + heads.offset + table.width();
    assert!(heads.count == 0 || end <= x.cols(), "rope: {heads:?} end at column {end} of {}", x.cols());
    positions.check("rope", x.rows(), table.positions());
    by_device!(
        x,
        cpu::apply(x, out, heads, table, positions, inverse),
        cuda::apply(x, out, heads, table, positions, inverse)
    );
}
