//! How attention knows positions: rotary embedding, ALiBi, or not at all.

mod scaling;

pub use scaling::RopeScaling;

use crate::error::ConfigError;
use keyfold_ops::rope::{Pairing, RopeTable};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, PoisonError};

/// Position information of an attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Position {
    /// Rotary embedding of queries and keys (arXiv 2104.09864), channel i paired with channel i + width / 2.
    #[default]
    Rope,
    /// A bias on scores, linear in the distance (arXiv 2108.12409).
    Alibi,
    /// None: order is known through the causal mask alone.
    None,
}

/// Default base of the rotary frequencies.
pub const ROPE_THETA: f64 = 10_000.0;

pub(crate) fn default_theta() -> f64 {
    ROPE_THETA
}

/// Fails unless the rotary parameters make sense for heads whose rotated part is `width` channels wide.
pub(crate) fn validate(
    position: Position,
    theta: f64,
    width: usize,
    width_key: &str,
) -> Result<(), ConfigError> {
    if position != Position::Rope {
        return Ok(());
    }
    if width == 0 || !width.is_multiple_of(2) {
        return Err(ConfigError::value(width_key, "an even number: rope rotates pairs of channels", width));
    }
    if !(theta.is_finite() && theta > 1.0) {
        return Err(ConfigError::value("rope_theta", "a finite number above 1", theta));
    }
    Ok(())
}

/// Fails unless `scale`, if given, is a usable factor on scores.
pub(crate) fn validate_scale(scale: Option<f64>) -> Result<(), ConfigError> {
    match scale {
        Some(scale) if !(scale.is_finite() && scale > 0.0) => {
            Err(ConfigError::value("softmax_scale", "a finite number above 0", scale))
        }
        _ => Ok(()),
    }
}

/// ALiBi slopes of `heads` heads: 2^(-8 (h+1) / heads) for a power of two, else those of the next lower power of two
/// followed by every other one of the next higher (section 3 and code of the ALiBi paper).
pub fn alibi_slopes(heads: usize) -> Vec<f32> {
    let powers = |n: usize| (1..=n).map(move |h| (-8.0 * h as f64 / n as f64).exp2() as f32);
    let lower = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 };
    powers(lower).chain(powers(2 * lower).step_by(2)).take(heads).collect()
}

/// The rotary embedding of an attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rotary {
    /// Whether there is one.
    pub position: Position,
    /// Base of the frequencies.
    pub theta: f64,
    /// How the frequencies were changed for longer sequences.
    pub scaling: Option<RopeScaling>,
    /// Which channels form pairs.
    pub pairing: Pairing,
}

impl Rotary {
    /// Plain rotary embedding of half-split pairs.
    pub fn plain(position: Position, theta: f64) -> Self {
        Self { position, theta, scaling: None, pairing: Pairing::HalfSplit }
    }

    /// Fails unless the parameters make sense for heads whose rotated part is `width` channels wide.
    pub(crate) fn validate(self, width: usize, width_key: &str) -> Result<(), ConfigError> {
        if let Some(scaling) = self.scaling {
            if self.position != Position::Rope {
                return Err(ConfigError::value("rope_scaling", "none unless position is rope", "given"));
            }
            scaling.validate().map_err(|error| error.under("rope_scaling"))?;
        }
        validate(self.position, self.theta, width, width_key)
    }

    fn table(self, width: usize, positions: usize) -> RopeTable {
        let plain = (0..width / 2).map(|i| self.theta.powf(-2.0 * i as f64 / width as f64)).collect();
        let (frequencies, amplitude) = match self.scaling {
            None => (plain, 1.0),
            Some(scaling) => scaling.apply(plain, self.theta, width),
        };
        RopeTable::of_frequencies(&frequencies, amplitude, positions).with_pairing(self.pairing)
    }
}

/// Rotary tables of a model, shared by its layers.
#[derive(Debug)]
pub struct RopeTables {
    positions: usize,
    tables: Mutex<Vec<(Rotary, usize, Arc<RopeTable>)>>,
}

impl RopeTables {
    /// Tables for positions `0 .. positions`.
    pub fn new(positions: usize) -> Self {
        Self { positions, tables: Mutex::default() }
    }

    /// Positions the tables cover.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// The table of `rotary` for `width` rotated channels; `None` unless its position is rope.
    pub fn get(&self, rotary: Rotary, width: usize) -> Option<Arc<RopeTable>> {
        if rotary.position != Position::Rope {
            return None;
        }
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((.., table)) = tables.iter().find(|(r, w, _)| (*r, *w) == (rotary, width)) {
            return Some(table.clone());
        }
        let table = Arc::new(rotary.table(width, self.positions));
        tables.push((rotary, width, table.clone()));
        Some(table)
    }
}

/// Slopes for `heads` heads if `position` is ALiBi.
pub(crate) fn slopes(position: Position, heads: usize) -> Option<Arc<[f32]>> {
    (position == Position::Alibi).then(|| alibi_slopes(heads).into())
}
