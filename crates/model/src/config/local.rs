//! `[model.local]`: layers whose attention sees a window only.

use crate::error::{ConfigError, positive};
use serde::{Deserialize, Serialize};

/// Local layers among global ones (Gemma 3, arXiv 2503.19786, section 2).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalConfig {
    /// Tokens that a token sees in these layers, itself included.
    pub window: usize,
    /// The layers, counted from 0.
    pub layers: Vec<usize>,
    /// Base of the rotary frequencies in these layers, which then are not scaled; the attention's by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
}

impl LocalConfig {
    pub(super) fn validate(&self, layers: usize) -> Result<(), ConfigError> {
        positive("window", self.window)?;
        match self.layers.iter().find(|layer| **layer >= layers) {
            Some(layer) => {
                let expected = format!("layers below num_hidden_layers = {layers}");
                Err(ConfigError::value("layers", expected, layer))
            }
            None => Ok(()),
        }
    }
}
