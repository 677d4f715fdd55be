//! Rotary frequencies for sequences longer than those of pretraining.

use crate::error::ConfigError;
use serde::{Deserialize, Serialize};

/// How rotary frequencies are changed: `rope_scaling`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum RopeScaling {
    /// Every position divided by `factor` (arXiv 2306.15595).
    Linear {
        /// How much longer sequences may be.
        factor: f64,
    },
    /// Llama 3.1: slow frequencies divided by `factor`, fast ones kept, a ramp between.
    Llama3 {
        /// How much longer sequences may be.
        factor: f64,
        /// Turns within the original length below which a frequency is slow.
        low_freq_factor: f64,
        /// Turns within the original length above which a frequency is fast.
        high_freq_factor: f64,
        /// Longest sequence of pretraining.
        original_positions: usize,
    },
    /// YaRN (arXiv 2309.00071): as Llama 3.1's with a ramp over channels, and larger rotations.
    Yarn {
        /// How much longer sequences may be.
        factor: f64,
        /// Turns within the original length above which a frequency is kept.
        beta_fast: f64,
        /// Turns within the original length below which a frequency is divided.
        beta_slow: f64,
        /// Longest sequence of pretraining.
        original_positions: usize,
        /// Factor on cosines and sines.
        attention_factor: f64,
        /// Whether the ramp begins and ends at whole channels.
        truncate: bool,
    },
}

impl RopeScaling {
    /// The factor on cosines and sines that YaRN's paper recommends for a `factor` (equation 22).
    pub fn yarn_amplitude(factor: f64, mscale: f64) -> f64 {
        if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
    }

    pub(super) fn validate(self) -> Result<(), ConfigError> {
        let above = |key: &str, value: f64, least: f64| {
            if value.is_finite() && value >= least {
                return Ok(());
            }
            Err(ConfigError::value(key, format!("a finite number of at least {least}"), value))
        };
        let positive = |key: &str, value: f64| {
            if value.is_finite() && value > 0.0 {
                return Ok(());
            }
            Err(ConfigError::value(key, "a finite number above 0", value))
        };
        match self {
            Self::Linear { factor } => above("factor", factor, 1.0),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => {
                above("factor", factor, 1.0)?;
                positive("low_freq_factor", low_freq_factor)?;
                positive("high_freq_factor", high_freq_factor)?;
                if high_freq_factor <= low_freq_factor {
                    let expected = format!("above low_freq_factor = {low_freq_factor}");
                    return Err(ConfigError::value("high_freq_factor", expected, high_freq_factor));
                }
                crate::error::positive("original_positions", original_positions)
            }
            Self::Yarn { factor, beta_fast, beta_slow, original_positions, attention_factor, .. } => {
                above("factor", factor, 1.0)?;
                positive("beta_slow", beta_slow)?;
                above("beta_fast", beta_fast, beta_slow)?;
                positive("attention_factor", attention_factor)?;
                crate::error::positive("original_positions", original_positions)
            }
        }
    }

    /// The changed frequencies, and the factor on cosines and sines.
    pub(super) fn apply(self, plain: Vec<f64>, theta: f64, width: usize) -> (Vec<f64>, f64) {
        let turns = |frequency: f64, positions: usize| positions as f64 * frequency / std::f64::consts::TAU;
        match self {
            Self::Linear { factor } => (plain.into_iter().map(|f| f / factor).collect(), 1.0),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => {
                let change = |f: f64| {
                    let kept = (turns(f, original_positions) - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    let kept = kept.clamp(0.0, 1.0);
                    f * (kept + (1.0 - kept) / factor)
                };
                (plain.into_iter().map(change).collect(), 1.0)
            }
            Self::Yarn { factor, beta_fast, beta_slow, original_positions, attention_factor, truncate } => {
                // The channel whose frequency makes so many turns.
                let channel = |turns: f64| {
                    let positions = original_positions as f64;
                    width as f64 * (positions / (turns * std::f64::consts::TAU)).ln() / (2.0 * theta.ln())
                };
                let (mut low, mut high) = (channel(beta_fast), channel(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0), high.min(width as f64 - 1.0));
                if low == high {
                    high += 0.001;
                }
                let change = |(i, f): (usize, f64)| {
                    let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    f * (1.0 - divided + divided / factor)
                };
                (plain.into_iter().enumerate().map(change).collect(), attention_factor)
            }
        }
    }
}
