//! `[model]`: the shape of a decoder language model.

mod local;
mod moe;

pub use local::LocalConfig;
pub use moe::{MoeConfig, RouterScoring};

use crate::{
    attention::AttentionConfig,
    error::{ConfigError, positive},
    weights::{Declarations, Declared, Init, InitConfig, Part},
};
use keyfold_core::DType;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// The activation of an MLP's gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// SwiGLU (arXiv 2002.05202).
    #[default]
    Silu,
    /// GeGLU with the tanh form of GELU.
    GeluTanh,
}

impl Activation {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A pre-norm decoder: embedding, layers of attention and gated MLP, final norm, output head. Keys are named as in
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
    /// Activation of the MLPs.
    #[serde(default, skip_serializing_if = "Activation::is_default")]
    pub activation: Activation,
    /// Whether what attention and MLP add to the residual stream is normalised too (Gemma).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub post_norms: bool,
    /// Factor on token embeddings (Gemma: the square root of the width); 1 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding_scale: Option<f64>,
    /// Layers whose MLP is a mixture of experts; none by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moe: Option<MoeConfig>,
    /// Layers whose attention sees a window only; none by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<LocalConfig>,
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
        if let Some(scale) = self.embedding_scale.filter(|scale| !(scale.is_finite() && *scale > 0.0)) {
            return Err(ConfigError::value("embedding_scale", "a finite number above 0", scale));
        }
        self.validate_sizes()?;
        self.attention.design().validate().map_err(|error| error.under("attention"))?;
        if let Some(moe) = &self.moe {
            moe.validate(self.num_hidden_layers).map_err(|error| error.under("moe"))?;
        }
        if let Some(local) = &self.local {
            local.validate(self.num_hidden_layers).map_err(|error| error.under("local"))?;
            let windowed = self.attention.windowed(local).ok_or_else(|| {
                let expected = "mha, mqa, gqa or mfa: other designs have no windows";
                ConfigError::value("attention.kind", expected, self.attention.kind())
            })?;
            windowed.design().validate().map_err(|error| error.under("local"))?;
        }
        self.declare().map(drop)
    }

    /// Bounds every size before any product of them is formed.
    fn validate_sizes(&self) -> Result<(), ConfigError> {
        fn check(prefix: &str, node: &serde_json::Value) -> Result<(), ConfigError> {
            for (key, value) in node.as_object().into_iter().flatten() {
                check(&format!("{prefix}{key}."), value)?;
                if value.as_u64().is_some_and(|size| size > MAX_SIZE) {
                    let expected = format!("at most {MAX_SIZE}");
                    return Err(ConfigError::value(format!("{prefix}{key}"), expected, value));
                }
            }
            Ok(())
        }
        check("", &serde_json::to_value(self).unwrap_or_default())
    }

    /// The attention of layer `layer`: where the layer is local, with its window.
    pub fn layer_attention(&self, layer: usize) -> Cow<'_, AttentionConfig> {
        let local = self.local.as_ref().filter(|local| local.layers.contains(&layer));
        match local.and_then(|local| self.attention.windowed(local)) {
            Some(windowed) => Cow::Owned(windowed),
            None => Cow::Borrowed(&self.attention),
        }
    }

    /// The mixture of experts of layer `layer`, if it has one.
    pub fn layer_moe(&self, layer: usize) -> Option<&MoeConfig> {
        self.moe.as_ref().filter(|moe| moe.covers(layer))
    }

    /// Every weight of the model, in storage order.
    ///
    /// # Errors
    /// When their sizes overflow.
    pub fn declare(&self) -> Result<Vec<Declared>, ConfigError> {
        let hidden = self.hidden_size;
        let mut list = Declarations::new(self.init);
        list.part(Part::Embedding, |list| list.table("model.embed_tokens.weight", self.vocab_size, hidden))?;
        for layer in 0..self.num_hidden_layers {
            list.scoped(&format!("model.layers.{layer}."), |list| self.declare_layer(layer, list))?;
        }
        list.vector("model.norm.weight", hidden, Init::Ones)?;
        if !self.tie_word_embeddings {
            list.part(Part::Head, |list| list.table("lm_head.weight", self.vocab_size, hidden))?;
        }
        Ok(list.finish())
    }

    fn declare_layer(&self, layer: usize, list: &mut Declarations) -> Result<(), ConfigError> {
        let (hidden, layers) = (self.hidden_size, self.num_hidden_layers);
        list.vector("input_layernorm.weight", hidden, Init::Ones)?;
        list.part(Part::Attention, |list| {
            list.scoped("self_attn.", |list| {
                self.layer_attention(layer).design().declare(hidden, layers, list)
            })
        })?;
        list.vector("post_attention_layernorm.weight", hidden, Init::Ones)?;
        if self.post_norms {
            list.vector("pre_feedforward_layernorm.weight", hidden, Init::Ones)?;
            list.vector("post_feedforward_layernorm.weight", hidden, Init::Ones)?;
        }
        let mlp = |list: &mut Declarations, prefix: &str, part: Part, width: usize| {
            list.part(part, |list| {
                list.scoped(prefix, |list| {
                    list.matrix("gate_proj.weight", width, hidden)?;
                    list.matrix("up_proj.weight", width, hidden)?;
                    list.output("down_proj.weight", hidden, width, layers)
                })
            })
        };
        let Some(moe) = self.layer_moe(layer) else {
            return mlp(list, "mlp.", Part::Mlp, self.intermediate_size);
        };
        list.part(Part::Router, |list| {
            list.matrix("mlp.gate.weight", moe.experts, hidden)?;
            match moe.choice_bias {
                true => list.vector("mlp.gate.e_score_correction_bias", moe.experts, Init::Zeros),
                false => Ok(()),
            }
        })?;
        for expert in 0..moe.experts {
            mlp(list, &format!("mlp.experts.{expert}."), Part::Experts, moe.expert_size)?;
        }
        if moe.shared_size > 0 {
            mlp(list, "mlp.shared_experts.", Part::SharedExperts, moe.shared_size)?;
        }
        Ok(())
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
pub(crate) const MAX_LAYERS: usize = 4096;
/// Longest sequence that tables are made for.
const MAX_POSITIONS: usize = 1 << 24;
/// Largest single size: products of three stay far from 2^64.
const MAX_SIZE: u64 = 1 << 24;

#[cfg(test)]
mod tests;
