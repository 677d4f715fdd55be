//! The learning rate over a run, as a factor on its peak.
//!
//! Steps count from 1: step 1 is the first update, step `total_steps` the last. With a warm-up of W steps, step s of the
//! first W has the factor s / W, so that the first update already does something.

use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// How the learning rate goes after its warm-up. In TOML: `kind = "cosine"` and the fields.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Schedule {
    /// The peak from the first step to the last.
    Constant {},
    /// Half a cosine from the peak down to `final_ratio` at the last step (SGDR, arXiv 1608.03983, without restarts).
    Cosine {
        /// Steps of linear warm-up.
        warmup: u64,
        /// The factor at the last step, from 0 to 1.
        final_ratio: f64,
    },
    /// Warm-up, stable, decay: the peak, then a straight line to `final_ratio` (MiniCPM, arXiv 2404.06395; the linear
    /// decay is that of arXiv 2405.18392).
    Wsd {
        /// Steps of linear warm-up.
        warmup: u64,
        /// The part of all steps in which the rate falls, from 0 to 1.
        decay_fraction: f64,
        /// The factor at the last step, from 0 to 1.
        final_ratio: f64,
    },
}

/// A field of a [`Schedule`] that is not a fraction.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("schedule.{field} must be from 0 to 1, not {value}")]
pub struct ScheduleError {
    /// The field's name in the configuration.
    pub field: &'static str,
    /// Its value.
    pub value: f64,
}

impl Schedule {
    /// Checks the fractions. Any warm-up is allowed: one that is longer than the run just never ends.
    ///
    /// # Errors
    /// Names the first field that is not from 0 to 1.
    pub fn validate(&self) -> Result<(), ScheduleError> {
        let fractions: &[(&'static str, f64)] = match *self {
            Self::Constant {} => &[],
            Self::Cosine { final_ratio, .. } => &[("final_ratio", final_ratio)],
            Self::Wsd { decay_fraction, final_ratio, .. } => {
                &[("decay_fraction", decay_fraction), ("final_ratio", final_ratio)]
            }
        };
        match fractions.iter().find(|(_, value)| !(0.0..=1.0).contains(value)) {
            Some(&(field, value)) => Err(ScheduleError { field, value }),
            None => Ok(()),
        }
    }

    /// The factor on the peak learning rate at `step` of `total_steps`, counted from 1; above 0 and at most 1, or
    /// exactly `final_ratio` from the last step on.
    pub fn factor(&self, step: u64, total_steps: u64) -> f64 {
        let step = step.max(1) as f64;
        let total = total_steps as f64;
        match *self {
            Self::Constant {} => 1.0,
            Self::Cosine { warmup, final_ratio } => {
                let warmup = warmup as f64;
                if step < warmup {
                    return step / warmup;
                }
                let progress = ((step - warmup) / (total - warmup).max(1.0)).min(1.0);
                final_ratio + (1.0 - final_ratio) * 0.5 * (1.0 + (PI * progress).cos())
            }
            Self::Wsd { warmup, decay_fraction, final_ratio } => {
                let rising = step / warmup.max(1) as f64;
                let left = (total - step).max(0.0) / (decay_fraction * total).max(1.0);
                let falling = final_ratio + (1.0 - final_ratio) * left;
                rising.min(falling).min(1.0)
            }
        }
    }
}

#[cfg(test)]
mod tests;
