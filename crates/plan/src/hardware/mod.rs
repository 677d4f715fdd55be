//! Hardware as its makers describe it, and this machine as it is measured.

mod cpu;

use crate::{KvDtype, PlanError};
use serde::Serialize;

/// What decoding needs to know of hardware.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Hardware {
    /// Its name.
    pub name: String,
    /// Bytes of memory; none where it is not known.
    pub memory: Option<f64>,
    /// Bytes that can be read per second.
    pub bandwidth: f64,
    /// FLOP/s of dense products at 16 bits.
    pub bf16_flops: f64,
    /// FLOP/s of dense products of 8-bit floats; none without them.
    pub fp8_flops: Option<f64>,
    /// FLOP/s of products in f32, where measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub f32_flops: Option<f64>,
}

/// Accelerators: name, GB, GB/s, dense TFLOP/s at 16 bits and of 8-bit floats. From the makers' data sheets; the 910B's are
/// those by which the Step-3 report reckons (arXiv 2507.19427, section 4).
const KNOWN: [(&str, f64, f64, f64, Option<f64>); 9] = [
    ("H100", 80.0, 3350.0, 989.5, Some(1979.0)),
    ("H200", 141.0, 4800.0, 989.5, Some(1979.0)),
    ("H800", 80.0, 3350.0, 989.5, Some(1979.0)),
    ("H20", 96.0, 4000.0, 148.0, Some(296.0)),
    ("A100", 80.0, 2039.0, 312.0, None),
    ("A800", 80.0, 2039.0, 312.0, None),
    ("B200", 180.0, 8000.0, 2250.0, Some(4500.0)),
    ("910B", 64.0, 1600.0, 280.0, None),
    ("MI300X", 192.0, 5300.0, 1307.4, Some(2614.9)),
];

/// The name that stands for this machine.
const CPU: &str = "cpu";

impl Hardware {
    /// Hardware by name, whatever its case; `cpu` is this machine, measured in about two seconds.
    ///
    /// # Errors
    /// Lists the names when this is none of them.
    pub fn named(name: &str) -> Result<Self, PlanError> {
        if name.eq_ignore_ascii_case(CPU) {
            return Ok(cpu::measure());
        }
        let found = KNOWN.iter().find(|known| known.0.eq_ignore_ascii_case(name));
        let (name, memory, bandwidth, bf16, fp8) = found.ok_or_else(|| {
            let known: Vec<&str> = KNOWN.iter().map(|known| known.0).chain([CPU]).collect();
            PlanError::Hardware { found: name.to_owned(), known: known.join(", ") }
        })?;
        Ok(Self {
            name: (*name).to_owned(),
            memory: Some(memory * 1e9),
            bandwidth: bandwidth * 1e9,
            bf16_flops: bf16 * 1e12,
            fp8_flops: fp8.map(|flops| flops * 1e12),
            f32_flops: None,
        })
    }

    /// FLOP/s of attention over a cache of `kv`: at 8 bits where both have them.
    pub fn flops(&self, kv: KvDtype) -> f64 {
        match (kv, self.fp8_flops) {
            (KvDtype::Fp8, Some(flops)) => flops,
            _ => self.bf16_flops,
        }
    }
}

#[cfg(test)]
mod tests;
