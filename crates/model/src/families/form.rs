//! The forms that a model can be exported in, and why one cannot express a model.

use super::{FAMILIES, Family, common, keyfold, step3_text};
use crate::{
    attention::AttentionConfig,
    config::{Activation, ModelConfig, RouterScoring},
    position::{Position, RopeScaling},
};
use std::{fmt, str::FromStr};

/// Which software a folder is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A class of `transformers`: Llama, Mistral, Qwen, Gemma or DeepSeek.
    Hf,
    /// `Step3TextForCausalLM`, as StepFun's code and inference engines read it.
    Step3,
    /// The project's own form, which expresses every model.
    Keyfold,
}

/// A form that is not known.
#[derive(Debug, thiserror::Error)]
#[error("unknown form `{0}`: expected hf, step3 or keyfold")]
pub struct ParseFormError(String);

impl FromStr for Form {
    type Err = ParseFormError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let forms = [Self::Hf, Self::Step3, Self::Keyfold];
        forms.into_iter().find(|form| form.to_string() == s).ok_or_else(|| ParseFormError(s.to_owned()))
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hf => "hf",
            Self::Step3 => "step3",
            Self::Keyfold => "keyfold",
        })
    }
}

impl Form {
    fn has(self, family: &Family) -> bool {
        let own = match family.model_type {
            _ if family.model_type == step3_text::FAMILY.model_type => Self::Step3,
            _ if family.model_type == keyfold::FAMILY.model_type => Self::Keyfold,
            _ => Self::Hf,
        };
        own == self
    }

    /// The first family of this form that can express `config`.
    ///
    /// # Errors
    /// Why none can: the keys that stand in the way.
    pub fn family(self, config: &ModelConfig) -> Result<&'static Family, String> {
        let mut families = FAMILIES.iter().filter(|family| self.has(family));
        if let Some(family) = families.find(|family| (family.write)(config).is_some()) {
            return Ok(family);
        }
        let reasons = match self {
            Self::Hf => hf(config),
            Self::Step3 => step3(config),
            Self::Keyfold => Vec::new(),
        };
        Err(match reasons.len() {
            0 => "no model class has this combination of options".to_owned(),
            _ => reasons.join("; "),
        })
    }
}

/// Reasons under which a condition holds.
struct Reasons(Vec<String>);

impl Reasons {
    fn when(&mut self, holds: bool, reason: impl Into<String>) {
        if holds {
            self.0.push(reason.into());
        }
    }

    fn position(&mut self, position: Position) {
        let name = if position == Position::Alibi { "alibi" } else { "none" };
        self.when(
            position != Position::Rope,
            format!("`attention.position` is {name}: only rope is known there"),
        );
    }

    /// What only Gemma has.
    fn plain(&mut self, config: &ModelConfig) {
        self.when(config.activation != Activation::Silu, "`activation` is not silu");
        self.when(config.post_norms, "`post_norms` are only known with Gemma 3's other options");
        self.when(
            config.embedding_scale.is_some(),
            "`embedding_scale` is only known with Gemma 3's other options",
        );
    }
}

fn hf(config: &ModelConfig) -> Vec<String> {
    let mut reasons = Reasons(Vec::new());
    match &config.attention {
        AttentionConfig::Mfa(_) => {
            reasons.when(true, "no class there has MFA's low-rank queries on one shared key; step3 has them");
        }
        AttentionConfig::MfaKr(_) => reasons.when(true, "no class there has key reuse (mfa-kr)"),
        AttentionConfig::Tpa(_) => reasons.when(true, "no class there has tensor product attention (tpa)"),
        AttentionConfig::Mla(_) => mla(config, &mut reasons),
        AttentionConfig::Mha(_) | AttentionConfig::Mqa(_) | AttentionConfig::Gqa(_) => {
            grouped(config, &mut reasons);
        }
    }
    reasons.0
}

fn grouped(config: &ModelConfig, reasons: &mut Reasons) {
    let Some(attention) = common::grouped(config) else {
        let design = serde_json::to_value(&config.attention).unwrap_or_default();
        let position = design.get("position").and_then(|position| position.as_str()) == Some("alibi");
        return reasons.position(if position { Position::Alibi } else { Position::None });
    };
    let gemma = config.activation == Activation::GeluTanh && config.post_norms && attention.qk_norm;
    if gemma {
        let root = (config.hidden_size as f64).sqrt();
        reasons
            .when(config.embedding_scale != Some(root), "`embedding_scale` is not the root of hidden_size");
        let theta = config.local.as_ref().is_some_and(|local| local.rope_theta.is_none());
        reasons.when(theta, "`local.rope_theta` is not given, which Gemma 3 needs");
    } else {
        reasons.plain(config);
        let scaled = attention.softmax_scale.is_some();
        reasons.when(scaled, "`attention.softmax_scale` is only known with Gemma 3's other options");
        let theta = config.local.as_ref().is_some_and(|local| local.rope_theta.is_some());
        reasons.when(theta, "`local.rope_theta` is only known with Gemma 3's other options");
        let local = config.local.is_some() && !attention.qkv_bias && !attention.qk_norm;
        reasons
            .when(local, "`local` layers need `attention.qkv_bias` (Qwen2) or `attention.qk_norm` (Qwen3)");
    }
    let both = attention.qkv_bias && attention.qk_norm;
    reasons.when(both, "`attention.qkv_bias` and `attention.qk_norm` are not known together");
    let windowed = attention.window.is_some() && (attention.qkv_bias || attention.qk_norm);
    reasons.when(windowed, "`attention.window` is only known without biases and query-key norms (Mistral)");
    if let Some(moe) = &config.moe {
        let needs = "of `moe` with grouped heads only Qwen3-MoE's kind is known there, which";
        reasons.when(!attention.qk_norm, format!("{needs} has `attention.qk_norm`"));
        reasons.when(moe.shared_size > 0, format!("{needs} has no `shared_size`"));
        reasons.when(moe.scoring != RouterScoring::Softmax, format!("{needs} has softmax `scoring`"));
        reasons.when(moe.scaling != 1.0, format!("{needs} has no `scaling`"));
        reasons.when(moe.groups != 1, format!("{needs} has no `groups`"));
        reasons.when(moe.choice_bias, format!("{needs} has no `choice_bias`"));
        reasons.when(config.local.is_some(), format!("{needs} has no `local` layers"));
    }
}

fn mla(config: &ModelConfig, reasons: &mut Reasons) {
    let AttentionConfig::Mla(attention) = &config.attention else { return };
    reasons.position(attention.position);
    reasons.plain(config);
    reasons
        .when(!attention.latent_norm, "`attention.latent_norm` is false: DeepSeek's latents are normalised");
    let eps = attention.latent_norm && attention.latent_norm_eps != 1e-6;
    reasons.when(eps, "`attention.latent_norm_eps` is not 1e-6, which DeepSeek's code fixes");
    reasons.when(config.local.is_some(), "`local` layers are not known with MLA");
    let yarn = match attention.rope_scaling {
        Some(RopeScaling::Yarn { attention_factor, .. }) => attention_factor == 1.0,
        _ => false,
    };
    let scaled = attention.softmax_scale.is_some();
    reasons.when(scaled && !yarn, "`attention.softmax_scale` is only known as a part of YaRN");
    let alone = attention.rope_scaling.is_some() && !scaled;
    reasons.when(alone, "`attention.rope_scaling` without `attention.softmax_scale` is not written there");
    if let Some(moe) = &config.moe {
        let needs = "DeepSeek-V3's `moe`";
        let first = moe.dense_layers.iter().copied().eq(0..moe.dense_layers.len());
        reasons.when(!first, format!("{needs} has its `dense_layers` first"));
        reasons.when(moe.scoring != RouterScoring::Sigmoid, format!("{needs} has sigmoid `scoring`"));
        reasons.when(!moe.choice_bias, format!("{needs} has a `choice_bias`"));
        let shared = moe.shared_size > 0 && moe.shared_size.is_multiple_of(moe.expert_size);
        reasons.when(!shared, format!("{needs} has a `shared_size` that is a multiple of `expert_size`"));
    }
}

fn step3(config: &ModelConfig) -> Vec<String> {
    let mut reasons = Reasons(Vec::new());
    let AttentionConfig::Mfa(attention) = &config.attention else {
        return vec![format!("`attention.kind` is {}: Step-3 has mfa", config.attention.kind())];
    };
    reasons.position(attention.position);
    reasons.plain(config);
    reasons
        .when(!attention.query_norm, "`attention.query_norm` is false: Step-3's latent query is normalised");
    reasons.when(attention.softmax_scale.is_some(), "`attention.softmax_scale` is fixed there");
    reasons.when(attention.window.is_some(), "`attention.window` is not known there");
    reasons.when(config.local.is_some(), "`local` layers are not known there");
    if let Some(moe) = &config.moe {
        let needs = "Step-3's `moe`";
        reasons.when(moe.scoring != RouterScoring::Softmax, format!("{needs} has softmax `scoring`"));
        reasons.when(moe.scaling != 1.0, format!("{needs} has no `scaling`"));
        reasons.when(moe.groups != 1, format!("{needs} has no `groups`"));
        reasons.when(moe.shared_size == 0, format!("{needs} has a `shared_size` above 0"));
        reasons.when(moe.choice_bias, format!("{needs} has no `choice_bias`"));
    }
    reasons.0
}
