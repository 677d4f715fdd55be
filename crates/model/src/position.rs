//! How attention knows positions: rotary embedding, ALiBi, or not at all.

use crate::error::ConfigError;
use keyfold_ops::rope::RopeTable;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

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

/// Rotary tables of a model, shared by its layers.
#[derive(Debug)]
pub struct RopeTables {
    positions: usize,
    tables: Mutex<HashMap<(usize, u64), Arc<RopeTable>>>,
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

    /// The table of `position` for `width` rotated channels; `None` unless it is rope.
    pub fn get(&self, position: Position, width: usize, theta: f64) -> Option<Arc<RopeTable>> {
        if position != Position::Rope {
            return None;
        }
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let table = tables
            .entry((width, theta.to_bits()))
            .or_insert_with(|| Arc::new(RopeTable::new(width, theta, self.positions)));
        Some(table.clone())
    }
}

/// Slopes for `heads` heads if `position` is ALiBi.
pub(crate) fn slopes(position: Position, heads: usize) -> Option<Arc<[f32]>> {
    (position == Position::Alibi).then(|| alibi_slopes(heads).into())
}
