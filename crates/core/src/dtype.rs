//! Element types of weights, activations and cache planes.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The type of one stored element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE 754 single precision, 4 bytes.
    F32,
    /// bfloat16, 2 bytes: storage only, arithmetic on it is done in `F32`.
    Bf16,
    /// e4m3 of the OCP 8-bit floating point formats (arXiv 2209.05433), 1 byte: in caches only, which have scales
    /// ([`crate::SCALE_BLOCK`]) behind their rows.
    #[serde(skip_deserializing)]
    Fp8,
}

impl DType {
    /// Bytes one element takes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
            Self::Fp8 => 1,
        }
    }

    /// For code that tensors of this type do not reach.
    ///
    /// # Panics
    /// Always: names `op` and the type.
    #[cold]
    #[track_caller]
    pub fn unsupported(self, op: &str) -> ! {
        panic!("{op}: no tensors of {self}")
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
        })
    }
}

/// A data type name that is not known.
#[derive(Debug, thiserror::Error)]
#[error("unknown data type `{0}`: expected f32 or bf16")]
pub struct ParseDTypeError(String);

impl FromStr for DType {
    type Err = ParseDTypeError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            other => Err(ParseDTypeError(other.to_owned())),
        }
    }
}
