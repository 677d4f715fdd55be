//! `Qwen2ForCausalLM` (biases on queries, keys and values), `Qwen3ForCausalLM` (queries and keys normalised per head) and
//! `Qwen3MoeForCausalLM`.

use super::{Family, Names, common, read::Keys, rope};
use crate::{
    attention::Grouped,
    config::{LocalConfig, ModelConfig, MoeConfig, RouterScoring},
    error::ConfigError,
};
use serde_json::{Map, Value};

pub(super) const QWEN2: Family = Family {
    model_type: "qwen2",
    architecture: "Qwen2ForCausalLM",
    write: |config| write_dense(config, |attention| attention.qkv_bias && !attention.qk_norm),
    read: |keys| read_dense(keys, Grouped { qkv_bias: true, ..grouped(keys)? }),
    names: Names::PLAIN,
};

pub(super) const QWEN3: Family = Family {
    model_type: "qwen3",
    architecture: "Qwen3ForCausalLM",
    write: |config| write_dense(config, |attention| attention.qk_norm && !attention.qkv_bias),
    read: |keys| {
        keys.only("attention_bias", &[false.into()])?;
        read_dense(keys, Grouped { qk_norm: true, ..grouped(keys)? })
    },
    names: Names::PLAIN,
};

pub(super) const QWEN3_MOE: Family = Family {
    model_type: "qwen3_moe",
    architecture: "Qwen3MoeForCausalLM",
    write: write_moe,
    read: read_moe,
    names: Names::PLAIN,
};

fn grouped(keys: &Keys<'_>) -> Result<Grouped, ConfigError> {
    keys.only("hidden_act", &["silu".into(), "swish".into()])?;
    common::read_grouped(keys, rope::read(keys, None)?)
}

fn read_dense(keys: &Keys<'_>, attention: Grouped) -> Result<ModelConfig, ConfigError> {
    let mut config = common::read(keys, attention.config(), "max_position_embeddings")?;
    let window: Option<usize> = keys.optional("sliding_window")?;
    let uses_windows = keys.optional("use_sliding_window")?.unwrap_or(false);
    if let Some(window) = window.filter(|_| uses_windows) {
        let layers = match common::sliding_layers(keys)? {
            Some(layers) => layers,
            // Older files: all layers from this one on.
            None => (keys.required("max_window_layers")?..config.num_hidden_layers).collect(),
        };
        if !layers.is_empty() {
            config.local = Some(LocalConfig { window, layers, rope_theta: None });
        }
    }
    Ok(config)
}

fn write_dense(config: &ModelConfig, fits: impl Fn(&Grouped) -> bool) -> Option<Map<String, Value>> {
    let attention = common::grouped(config)?;
    let local = config.local.as_ref();
    let expressible = common::is_plain(config)
        && config.moe.is_none()
        && local.is_none_or(|local| local.rope_theta.is_none())
        && attention.window.is_none()
        && attention.softmax_scale.is_none()
        && fits(&attention);
    if !expressible {
        return None;
    }
    let mut keys = common::write_grouped(config, &attention);
    keys.insert("hidden_act".into(), "silu".into());
    keys.insert("attention_bias".into(), attention.qkv_bias.into());
    keys.insert("use_sliding_window".into(), local.is_some().into());
    keys.insert("sliding_window".into(), local.map(|local| local.window).into());
    keys.insert("layer_types".into(), common::layer_types(local, config.num_hidden_layers));
    Some(keys)
}

fn read_moe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    keys.only("attention_bias", &[false.into()])?;
    keys.only("use_sliding_window", &[false.into()])?;
    let attention = Grouped { qk_norm: true, ..grouped(keys)? };
    let mut config = common::read(keys, attention.config(), "max_position_embeddings")?;
    let step: usize = keys.optional("decoder_sparse_step")?.unwrap_or(1);
    if step == 0 {
        return Err(ConfigError::value("decoder_sparse_step", "at least 1", step));
    }
    let dense: Vec<usize> = keys.optional("mlp_only_layers")?.unwrap_or_default();
    let is_dense = |layer: &usize| dense.contains(layer) || !(layer + 1).is_multiple_of(step);
    config.moe = Some(MoeConfig {
        experts: match keys.optional("num_experts")? {
            Some(experts) => experts,
            None => keys.required("num_local_experts")?,
        },
        top_k: keys.required("num_experts_per_tok")?,
        expert_size: keys.required("moe_intermediate_size")?,
        shared_size: 0,
        dense_layers: (0..config.num_hidden_layers).filter(is_dense).collect(),
        scoring: RouterScoring::Softmax,
        normalise: keys.optional("norm_topk_prob")?.unwrap_or(false),
        scaling: 1.0,
        groups: 1,
        top_groups: 1,
        choice_bias: false,
    });
    Ok(config)
}

fn write_moe(config: &ModelConfig) -> Option<Map<String, Value>> {
    let (attention, moe) = (common::grouped(config)?, config.moe.as_ref()?);
    let expressible = common::is_plain(config)
        && config.local.is_none()
        && attention.qk_norm
        && !attention.qkv_bias
        && attention.window.is_none()
        && attention.softmax_scale.is_none()
        && moe.shared_size == 0
        && moe.scoring == RouterScoring::Softmax
        && moe.scaling == 1.0
        && moe.groups == 1
        && !moe.choice_bias;
    if !expressible {
        return None;
    }
    let mut keys = common::write_grouped(config, &attention);
    keys.insert("hidden_act".into(), "silu".into());
    keys.insert("attention_bias".into(), false.into());
    keys.insert("use_sliding_window".into(), false.into());
    keys.insert("decoder_sparse_step".into(), 1.into());
    keys.insert("mlp_only_layers".into(), moe.dense_layers.clone().into());
    keys.insert("num_experts".into(), moe.experts.into());
    keys.insert("num_experts_per_tok".into(), moe.top_k.into());
    keys.insert("moe_intermediate_size".into(), moe.expert_size.into());
    keys.insert("norm_topk_prob".into(), moe.normalise.into());
    Some(keys)
}
