//! `Step3TextForCausalLM`: MFA with a normalised latent query and rotary positions, dense layers and mixtures of experts
//! whose weights are stacked.

use super::{Family, Names, common, names::Place, read::Keys, rope};
use crate::{
    attention::{AttentionConfig, MfaConfig},
    config::{ModelConfig, MoeConfig, RouterScoring},
    error::ConfigError,
    position::Position,
};
use serde_json::{Map, Value};

pub(super) const FAMILY: Family = Family {
    model_type: "step3_text",
    architecture: "Step3TextForCausalLM",
    write,
    read,
    names: Names { place, ..Names::PLAIN },
};

/// Step-3's rotary base, the default of its configuration class.
const STEP3_ROPE_THETA: f64 = 500_000.0;

/// Experts are stacked in one tensor, and the shared one lies beside them.
fn place(name: &str) -> Place {
    let plain = || Place { tensor: name.to_owned(), slice: None };
    let Some((layer, weight)) = name.split_once(".mlp.") else { return plain() };
    if let Some(shared) = weight.strip_prefix("shared_experts.") {
        return Place { tensor: format!("{layer}.share_expert.{shared}"), slice: None };
    }
    if weight == "gate.weight" {
        return Place { tensor: format!("{layer}.moe.gate.weight"), slice: None };
    }
    let expert = weight.strip_prefix("experts.").and_then(|rest| rest.split_once('.'));
    match expert.and_then(|(number, weight)| Some((number.parse().ok()?, weight))) {
        Some((number, weight)) => Place { tensor: format!("{layer}.moe.{weight}"), slice: Some(number) },
        None => plain(),
    }
}

fn write(config: &ModelConfig) -> Option<Map<String, Value>> {
    let AttentionConfig::Mfa(attention) = &config.attention else { return None };
    let moe = config.moe.as_ref();
    let expressible = attention.position == Position::Rope
        && attention.softmax_scale.is_none()
        && attention.query_norm
        && attention.window.is_none()
        && common::is_plain(config)
        && config.local.is_none()
        && moe.is_none_or(|moe| {
            moe.scoring == RouterScoring::Softmax
                && moe.scaling == 1.0
                && moe.groups == 1
                && moe.shared_size > 0
                && !moe.choice_bias
        });
    if !expressible {
        return None;
    }
    let mut keys = common::write(config);
    rope::insert(&mut keys, attention.rope_theta, attention.rope_scaling);
    let mut set = |key: &str, value: Value| keys.insert(key.into(), value);
    set("num_attention_heads", attention.heads.into());
    set("num_attention_groups", 1.into());
    set("head_dim", attention.head_dim.into());
    set("share_q_dim", attention.rank().into());
    // The class has the singular; one engine reads the plural, which is there already.
    set("max_position_embedding", config.max_position_embeddings.into());
    set("max_seq_len", config.max_position_embeddings.into());
    // Engines split this string at commas; it lists the mixtures of experts.
    let layers = (0..config.num_hidden_layers).filter(|layer| config.layer_moe(*layer).is_some());
    let layers: Vec<String> = layers.map(|layer| layer.to_string()).collect();
    set("moe_layers_enum", layers.join(",").into());
    set("moe_num_experts", moe.map_or(1, |moe| moe.experts).into());
    set("moe_top_k", moe.map_or(1, |moe| moe.top_k).into());
    set("moe_intermediate_size", moe.map_or(config.intermediate_size, |moe| moe.expert_size).into());
    set("share_expert_dim", moe.map_or(config.intermediate_size, |moe| moe.shared_size).into());
    set("norm_expert_weight", moe.is_some_and(|moe| moe.normalise).into());
    Some(keys)
}

fn read(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    keys.only("num_attention_groups", &[1.into()])?;
    let rope = rope::read(keys, None)?;
    let head_dim = keys.required("head_dim")?;
    let attention = AttentionConfig::Mfa(MfaConfig {
        heads: keys.required("num_attention_heads")?,
        head_dim,
        query_rank: keys.optional("share_q_dim")?.filter(|rank| *rank != head_dim),
        query_norm: true,
        position: Position::Rope,
        rope_theta: rope.theta.unwrap_or(STEP3_ROPE_THETA),
        rope_scaling: rope.scaling,
        softmax_scale: None,
        window: None,
    });
    let positions = ["max_position_embedding", "max_position_embeddings"];
    let key = positions.into_iter().find(|key| keys.all().contains_key(*key)).unwrap_or(positions[0]);
    let mut config = common::read(keys, attention, key)?;
    config.moe = experts(keys, config.num_hidden_layers)?;
    Ok(config)
}

/// The mixture of experts, unless `moe_layers_enum` lists no layer.
fn experts(keys: &Keys<'_>, layers: usize) -> Result<Option<MoeConfig>, ConfigError> {
    let listed: Vec<usize> = match keys.all().get("moe_layers_enum") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(text)) => {
            let numbers = text.split(',').map(str::trim).filter(|number| !number.is_empty());
            let parsed: Result<_, _> = numbers.map(str::parse).collect();
            parsed.map_err(|_| {
                ConfigError::value("moe_layers_enum", "layer numbers, separated by commas", text)
            })?
        }
        Some(_) => keys.required("moe_layers_enum")?,
    };
    if let Some(layer) = listed.iter().find(|layer| **layer >= layers) {
        let expected = format!("layers below num_hidden_layers = {layers}");
        return Err(ConfigError::value("moe_layers_enum", expected, layer));
    }
    if listed.is_empty() {
        return Ok(None);
    }
    Ok(Some(MoeConfig {
        experts: keys.required("moe_num_experts")?,
        top_k: keys.required("moe_top_k")?,
        expert_size: keys.required("moe_intermediate_size")?,
        shared_size: keys.required("share_expert_dim")?,
        dense_layers: (0..layers).filter(|layer| !listed.contains(layer)).collect(),
        scoring: RouterScoring::Softmax,
        normalise: keys.optional("norm_expert_weight")?.unwrap_or(false),
        scaling: 1.0,
        groups: 1,
        top_groups: 1,
        choice_bias: false,
    }))
}
