//! `[model]`: the shape of a decoder language model.

use crate::{
    attention::AttentionConfig,
    error::{ConfigError, positive},
    weights::{Declarations, Declared, Init, InitConfig},
};
use keyfold_core::DType;
use serde::{Deserialize, Serialize};

/// A pre-norm decoder: embedding, layers of attention and SwiGLU MLP, final norm, output head. Keys are named as in
/// Hugging Face configurations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Number of token ids; where a run leaves it out, the tokenizer's.
    #[serde(default)]
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Width of the MLP's gate.
    pub intermediate_size: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Whether the output head is the embedding.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Epsilon of the norms.
    #[serde(default = "norm_eps")]
    pub rms_norm_eps: f64,
    /// Initialisation.
    #[serde(default)]
    pub init: InitConfig,
    /// The attention of every layer.
    pub attention: AttentionConfig,
}

fn norm_eps() -> f64 {
    1e-5
}

impl ModelConfig {
    /// Fails with the key's name when the sizes make no model.
    pub fn validate(&self) -> Result<(), ConfigError> {
        positive("vocab_size", self.vocab_size)?;
        positive("hidden_size", self.hidden_size)?;
        positive("num_hidden_layers", self.num_hidden_layers)?;
        positive("intermediate_size", self.intermediate_size)?;
        positive("max_position_embeddings", self.max_position_embeddings)?;
        if self.vocab_size >= u32::MAX as usize {
            return Err(ConfigError::value("vocab_size", "fewer than 2^32 - 1 token ids", self.vocab_size));
        }
        if self.max_position_embeddings > MAX_POSITIONS {
            let expected = format!("at most {MAX_POSITIONS}");
            return Err(ConfigError::value(
                "max_position_embeddings",
                expected,
                self.max_position_embeddings,
            ));
        }
        if self.num_hidden_layers > MAX_LAYERS {
            let expected = format!("at most {MAX_LAYERS}");
            return Err(ConfigError::value("num_hidden_layers", expected, self.num_hidden_layers));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps > 0.0) {
            return Err(ConfigError::value("rms_norm_eps", "a finite number above 0", self.rms_norm_eps));
        }
        let stds = [("init.std", Some(self.init.std)), ("init.projection_std", self.init.projection_std)];
        for (key, std) in stds {
            if let Some(std) = std.filter(|std| !(std.is_finite() && *std >= 0.0)) {
                return Err(ConfigError::value(key, "a finite number of at least 0", std));
            }
        }
        self.validate_sizes()?;
        self.attention.design().validate().map_err(|error| error.under("attention"))?;
        self.declare().map(drop)
    }

    /// Bounds every size before any product of them is formed.
    fn validate_sizes(&self) -> Result<(), ConfigError> {
        let tree = serde_json::to_value(self).unwrap_or_default();
        let attention = tree.get("attention").and_then(|node| node.as_object().cloned()).unwrap_or_default();
        let own = tree.as_object().cloned().unwrap_or_default();
        for (prefix, node) in [("", own), ("attention.", attention)] {
            for (key, value) in node {
                if value.as_u64().is_some_and(|size| size > MAX_SIZE) {
                    let expected = format!("at most {MAX_SIZE}");
                    return Err(ConfigError::value(format!("{prefix}{key}"), expected, value));
                }
            }
        }
        Ok(())
    }

    /// Every weight of the model, in storage order.
    ///
    /// # Errors
    /// When their sizes overflow.
    pub fn declare(&self) -> Result<Vec<Declared>, ConfigError> {
        let (hidden, layers) = (self.hidden_size, self.num_hidden_layers);
        let mut list = Declarations::new(self.init);
        list.table("model.embed_tokens.weight", self.vocab_size, hidden)?;
        for layer in 0..layers {
            list.scoped(&format!("model.layers.{layer}."), |list| {
                list.vector("input_layernorm.weight", hidden, Init::Ones)?;
                list.scoped("self_attn.", |list| self.attention.design().declare(hidden, layers, list))?;
                list.vector("post_attention_layernorm.weight", hidden, Init::Ones)?;
                list.scoped("mlp.", |list| {
                    list.matrix("gate_proj.weight", self.intermediate_size, hidden)?;
                    list.matrix("up_proj.weight", self.intermediate_size, hidden)?;
                    list.output("down_proj.weight", hidden, self.intermediate_size, layers)
                })
            })?;
        }
        list.vector("model.norm.weight", hidden, Init::Ones)?;
        if !self.tie_word_embeddings {
            list.table("lm_head.weight", self.vocab_size, hidden)?;
        }
        Ok(list.finish())
    }

    /// Number of parameters.
    ///
    /// # Errors
    /// When their sizes overflow.
    pub fn parameters(&self) -> Result<usize, ConfigError> {
        Ok(self.declare()?.iter().map(Declared::len).sum())
    }

    /// Bytes of KV cache per token, all layers.
    ///
    /// # Errors
    /// When the cache cannot be laid out.
    pub fn kv_bytes_per_token(&self, dtype: DType) -> Result<usize, ConfigError> {
        Ok(self.attention.design().cache_layout()?.bytes_per_token(dtype) * self.num_hidden_layers)
    }
}

/// Most layers: each is a list of weights, which must not fill the memory before anything is checked.
const MAX_LAYERS: usize = 4096;
/// Longest sequence that tables are made for.
const MAX_POSITIONS: usize = 1 << 24;
/// Largest single size: products of three stay far from 2^64.
const MAX_SIZE: u64 = 1 << 24;

#[cfg(test)]
mod tests;
