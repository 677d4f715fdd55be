//! The same matrix on two devices.

use crate::indices::Indices;
use keyfold_core::DType;
use keyfold_tensor::{Arena, Device, Tensor, bf16, e4m3};
use std::fmt;

/// The outcome of one comparison.
#[derive(Clone, Debug)]
pub struct Check {
    /// The op.
    pub op: &'static str,
    /// What was computed, and of what size.
    pub what: String,
    /// Norm of the difference over the norm of what was expected.
    pub error: f64,
    /// The error that is allowed.
    pub limit: f64,
    /// What is wrong, if something is.
    pub failure: Option<Failure>,
}

/// What can be wrong with a result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Failure {
    /// The error is above its limit.
    Error,
    /// An element is NaN or infinite where the host's is not.
    NotFinite {
        /// The first such row.
        row: usize,
        /// Its column.
        col: usize,
    },
    /// Memory between the rows of a view was written.
    Gap,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { op, what, error, limit, failure } = self;
        write!(f, "{op}: {what}: error {error:.2e}, limit {limit:.0e}")?;
        match failure {
            None => Ok(()),
            Some(Failure::Error) => write!(f, ": too large"),
            Some(Failure::NotFinite { row, col }) => write!(f, ": row {row}, column {col} is not a number"),
            Some(Failure::Gap) => write!(f, ": wrote between the rows of a view"),
        }
    }
}

/// How a matrix lies in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Gaps {
    /// Rows follow one another.
    None,
    /// Rows begin at multiples of 16 bytes, with gaps.
    Aligned,
    /// Rows begin anywhere.
    Odd,
}

/// A matrix of equal values on both devices: f32 on the host, of the chosen type on the device.
pub(super) struct Twin {
    pub(super) host: Tensor,
    pub(super) device: Tensor,
    /// All memory of the device's view.
    whole: Tensor,
    start: usize,
}

/// Makes and compares twins.
pub(super) struct Twins<'a> {
    op: &'static str,
    host: Arena,
    device: Arena,
    seed: u64,
    small: bool,
    on: &'a mut dyn FnMut(&Check),
}

impl<'a> Twins<'a> {
    pub(super) fn new(op: &'static str, device: Device, small: bool, on: &'a mut dyn FnMut(&Check)) -> Self {
        let device = Arena::poisoned_on(device).unwrap_or_else(|error| error.raise());
        Self { op, host: Arena::poisoned(), device, seed: 1, small, on }
    }

    /// Whether few and small checks are wanted.
    pub(super) fn small(&self) -> bool {
        self.small
    }

    /// Unspecified contents.
    pub(super) fn empty(&mut self, rows: usize, cols: usize, dtype: DType, gaps: Gaps) -> Twin {
        let (start, extra) = match gaps {
            Gaps::None => (0, 0),
            Gaps::Aligned => (8, 16 + cols.next_multiple_of(8) - cols),
            Gaps::Odd => (3, 6 + cols % 2),
        };
        let whole = self.device.tensor(rows, cols + extra, dtype);
        Twin {
            host: self.host.tensor(rows, cols, DType::F32),
            device: whole.columns(start, cols),
            whole,
            start,
        }
    }

    /// Values of about unit size.
    pub(super) fn random(&mut self, rows: usize, cols: usize, dtype: DType, gaps: Gaps) -> Twin {
        self.seed += 1;
        let values = random(self.seed, rows * cols);
        self.of(rows, cols, dtype, gaps, &values)
    }

    /// These values, rounded to `dtype`.
    pub(super) fn of(&mut self, rows: usize, cols: usize, dtype: DType, gaps: Gaps, values: &[f32]) -> Twin {
        let mut twin = self.empty(rows, cols, dtype, gaps);
        let rounded: Vec<f32> = match dtype {
            DType::F32 => values.to_vec(),
            DType::Bf16 => values.iter().map(|x| bf16::from_f32(*x).to_f32()).collect(),
            DType::Fp8 => values.iter().map(|x| e4m3::to_f32(e4m3::from_f32(*x))).collect(),
        };
        twin.host.write(&rounded);
        twin.device.write(&rounded);
        twin
    }

    /// Rows of 8 bits on both devices, all bytes as given.
    pub(super) fn bytes(&self, rows: usize, cols: usize, byte: u8) -> [Tensor; 2] {
        [&self.host, &self.device].map(|arena| {
            let mut tensor = arena.tensor(rows, cols, DType::Fp8);
            tensor.write_bytes(&vec![byte; rows * cols]);
            tensor
        })
    }

    /// The same numbers for the host's ops and for the device's.
    pub(super) fn indices(&self, values: &[u32]) -> [Indices; 2] {
        [&self.host, &self.device].map(|arena| Indices::new(arena, values.to_vec()))
    }

    /// The arena of the device.
    pub(super) fn device(&self) -> &Arena {
        &self.device
    }

    /// Numbers to draw ids and the like from.
    pub(super) fn ids(&mut self, count: usize, below: usize) -> Vec<u32> {
        self.seed += 1;
        random(self.seed, count)
            .iter()
            .map(|x| ((x * 0.5 + 0.5) * below as f32) as u32 % below as u32)
            .collect()
    }

    /// Compares both, and looks at the memory between the device's rows.
    pub(super) fn compare(&mut self, what: impl Into<String>, twin: &Twin, limit: f64) {
        let cols = twin.device.cols();
        let (got, want) = (twin.device.to_vec(), twin.host.to_vec());
        let whole = twin.whole.to_vec();
        let pitch = twin.whole.cols().max(1);
        let inside = |at: usize| (twin.start..twin.start + cols).contains(&(at % pitch));
        let gap = whole.iter().enumerate().any(|(at, x)| !inside(at) && !x.is_nan());
        let mut check = self.check(what.into(), &got, &want, cols, limit);
        if gap {
            check.failure = Some(Failure::Gap);
        }
        (self.on)(&check);
    }

    /// Compares numbers that are not in twins.
    pub(super) fn compare_values(&mut self, what: impl Into<String>, got: &[f32], want: &[f32], limit: f64) {
        let check = self.check(what.into(), got, want, 1, limit);
        (self.on)(&check);
    }

    fn check(&self, what: String, got: &[f32], want: &[f32], cols: usize, limit: f64) -> Check {
        let (mut difference, mut norm) = (0.0, 0.0);
        let mut failure = None;
        for (at, (got, want)) in got.iter().zip(want).enumerate() {
            let (got, want) = (f64::from(*got), f64::from(*want));
            if !got.is_finite() && want.is_finite() && failure.is_none() {
                failure = Some(Failure::NotFinite { row: at / cols, col: at % cols });
            }
            difference += (got - want) * (got - want);
            norm += want * want;
        }
        let error =
            if got.len() != want.len() { f64::INFINITY } else { (difference / norm.max(1e-24)).sqrt() };
        if failure.is_none() && (error.is_nan() || error > limit) {
            failure = Some(Failure::Error);
        }
        Check { op: self.op, what, error, limit, failure }
    }
}

/// Seeded values in -1..1 (xorshift), the same on every machine.
pub(crate) fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0x1234_5678_9ABC_DEF1);
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}
