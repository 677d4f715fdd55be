//! What a model is asked to decode.

use crate::PlanError;
use keyfold_core::CacheLayout;
use serde::Serialize;
use std::{fmt, str::FromStr};

/// How one element of the cache is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KvDtype {
    /// 16 bits.
    #[default]
    Bf16,
    /// 8 bits; scales of blocks are not counted.
    Fp8,
    /// 4 bits; scales of blocks are not counted.
    Int4,
}

impl KvDtype {
    /// Bits of an element.
    pub fn bits(self) -> u64 {
        match self {
            Self::Bf16 => 16,
            Self::Fp8 => 8,
            Self::Int4 => 4,
        }
    }

    /// Bytes of an element.
    pub fn bytes(self) -> f64 {
        self.bits() as f64 / 8.0
    }

    /// Bytes per token of one layer; a last half byte counts whole.
    pub fn bytes_per_token(self, layout: &CacheLayout) -> u64 {
        (layout.elements_per_token() as u64 * self.bits()).div_ceil(8)
    }
}

impl fmt::Display for KvDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::Int4 => "int4",
        })
    }
}

impl FromStr for KvDtype {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        match text {
            "bf16" => Ok(Self::Bf16),
            "fp8" => Ok(Self::Fp8),
            "int4" => Ok(Self::Int4),
            other => Err(PlanError::value("--kv-dtype", "bf16, fp8 or int4", other)),
        }
    }
}

/// One step of decoding: a token for each of `batch` sequences that have `context` tokens in their caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Workload {
    /// Tokens in each cache.
    pub context: u64,
    /// Sequences.
    pub batch: u64,
    /// Storage of the cache.
    pub kv_dtype: KvDtype,
}

/// Longest context and largest batch: products with every other size stay within 128 bits.
const MOST: u64 = 1 << 32;

impl Workload {
    /// A step; both numbers from 1 to 2^32.
    ///
    /// # Errors
    /// Names the option that is out of range.
    pub fn new(context: u64, batch: u64, kv_dtype: KvDtype) -> Result<Self, PlanError> {
        for (key, value) in [("--context", context), ("--batch", batch)] {
            if !(1..=MOST).contains(&value) {
                return Err(PlanError::value(key, format!("1 to {MOST}"), value));
            }
        }
        Ok(Self { context, batch, kv_dtype })
    }
}
