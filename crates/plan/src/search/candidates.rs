//! The attentions that a search looks at.

use keyfold_model::{Matcher, ModelConfig, attention::AttentionConfig};
use serde_json::{Map, Value, json};

/// What limits widths.
pub(super) struct Budget {
    /// Cache elements per token and layer.
    pub(super) elements: u64,
}

/// Parts of the target's attention parameters that a candidate's attention may take.
const SHARES: [f64; 4] = [0.5, 0.75, 1.0, 1.25];
/// Widths that are tried where they fit: of shared keys and latents.
const WIDTHS: [u64; 14] = [16, 32, 48, 64, 96, 128, 192, 256, 320, 384, 512, 640, 768, 1024];
/// Widths of conventional heads.
const HEAD_DIMS: [u64; 4] = [32, 64, 128, 256];

/// Every attention with each number of heads that its share of the parameters gives.
pub(super) fn attentions(
    target: &ModelConfig,
    matcher: &Matcher<'_>,
    budget: &Budget,
) -> Vec<AttentionConfig> {
    let shared = shared_keys(target);
    let mut all = Vec::new();
    for sizes in designs(target, budget) {
        let mut tree = shared.clone();
        tree.extend(sizes.as_object().cloned().unwrap_or_default());
        if tree.get("kind").and_then(Value::as_str) == Some("mla") && tree["position"] != "rope" {
            tree.insert("qk_rope_head_dim".into(), 0.into());
        }
        tree.insert("heads".into(), tree.get("kv_heads").cloned().unwrap_or_else(|| 1.into()));
        let Ok(one) = serde_json::from_value::<AttentionConfig>(Value::Object(tree)) else { continue };
        for attention in with_shares(target, matcher, &one) {
            if !all.contains(&attention) {
                all.push(attention);
            }
        }
    }
    all
}

/// Positions as in the target; rotary bases hold for all designs alike.
fn shared_keys(target: &ModelConfig) -> Map<String, Value> {
    let tree = serde_json::to_value(&target.attention).unwrap_or_default();
    let keys = ["position", "rope_theta"].into_iter();
    keys.filter_map(|key| Some((key.to_owned(), tree.get(key)?.clone()))).collect()
}

fn designs(target: &ModelConfig, budget: &Budget) -> Vec<Value> {
    let hidden = target.hidden_size as u64;
    // Much narrower than the target's heads, a head could not tell tokens apart, however many there are.
    let narrowest = (target.attention.design().capacity().rank_per_head / 4) as u64;
    let small = |width: &u64| (narrowest..=hidden).contains(width);
    // The widest that fits, in steps that kernels like, beside the usual ones.
    let up_to = |most: u64| {
        let widest = if most >= 16 { most / 16 * 16 } else { most / 2 * 2 };
        let mut widths: Vec<u64> = WIDTHS.into_iter().filter(|width| *width <= most).collect();
        if widest > 0 && widest <= 1024 && !widths.contains(&widest) {
            widths.push(widest);
        }
        widths.retain(small);
        widths
    };
    let mut all = Vec::new();
    for (kind, planes) in [("mfa", 2), ("mfa-kr", 1)] {
        for width in up_to(budget.elements / planes) {
            for rank in [width, 2 * width, 4 * width, 8 * width].into_iter().filter(small) {
                let rank = (rank != width).then_some(rank);
                all.push(json!({ "kind": kind, "head_dim": width, "query_rank": rank }));
            }
        }
    }
    for rope in [32, 64] {
        for latent in up_to(budget.elements.saturating_sub(rope)) {
            for head in HEAD_DIMS.into_iter().filter(|head| *head <= 2 * latent) {
                for query in
                    [None, Some(3 * latent)].into_iter().filter(|query| query.is_none_or(|q| q < hidden))
                {
                    all.push(json!({ "kind": "mla", "q_lora_rank": query, "kv_lora_rank": latent,
                        "qk_nope_head_dim": head, "qk_rope_head_dim": rope, "v_head_dim": head }));
                }
            }
        }
    }
    for head in HEAD_DIMS.into_iter().filter(small) {
        for groups in (0..7).map(|power| 1u64 << power).filter(|groups| 2 * groups * head <= budget.elements)
        {
            let kind = if groups == 1 { "mqa" } else { "gqa" };
            let groups = (groups > 1).then_some(groups);
            let mut tree = json!({ "kind": kind, "head_dim": head });
            if let Some(groups) = groups {
                tree["kv_heads"] = groups.into();
            }
            all.push(tree);
        }
        for (query, kv) in [(6, 1), (6, 2), (6, 4), (16, 1), (16, 2)] {
            all.push(json!({ "kind": "tpa", "head_dim": head, "query_rank": query, "key_rank": kv, "value_rank": kv }));
        }
    }
    all
}

/// `attention` with the numbers of heads that make it as large as each of [`SHARES`] of the target's.
fn with_shares(
    target: &ModelConfig,
    matcher: &Matcher<'_>,
    attention: &AttentionConfig,
) -> Vec<AttentionConfig> {
    let step = attention.design().heads().max(1);
    let size = |heads: usize| matcher.layer(&attention.with_heads(heads)).ok().map(|size| size as f64);
    let (Some(one), Some(two)) = (size(step), size(2 * step)) else { return Vec::new() };
    let wanted = matcher.attention() as f64 / target.num_hidden_layers as f64;
    // Every design grows by the same number of parameters with each head.
    let heads = SHARES.map(|share| (share * wanted - (2.0 * one - two)) / (two - one));
    let heads = heads.into_iter().filter(|heads| heads.is_finite() && *heads >= 0.5 && *heads < 65536.0);
    let mut all: Vec<AttentionConfig> = Vec::new();
    for heads in heads {
        let attention = attention.with_heads((heads.round() as usize).max(1) * step);
        if !all.contains(&attention) {
            all.push(attention);
        }
    }
    all
}
