//! How much memory decoding reads: weights are read once for every token, so their bytes and the machine's bandwidth
//! (`keyfold_ops::bandwidth`) bound its speed.

use keyfold_model::{
    ModelConfig,
    weights::{Part, Weights},
};

/// Bytes of weights that decoding one token reads: all but the rows of the embedding that it does not look up, and the
/// experts that it does not choose.
pub(super) fn weight_bytes_per_token(config: &ModelConfig, weights: &Weights) -> u64 {
    let mut bytes = 0;
    for (declared, param) in weights.iter() {
        let all = (declared.len() * param.value.dtype().bytes()) as u64;
        bytes += if declared.part == Part::Embedding && !config.tie_word_embeddings {
            all / config.vocab_size as u64
        } else if let Some(moe) = config.moe.as_ref().filter(|_| declared.part == Part::Experts) {
            // Experts are of equal size: each counts with its share of being chosen.
            all * moe.top_k as u64 / moe.experts as u64
        } else {
            all
        };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use keyfold_core::DType;
    use keyfold_tensor::Arena;
    use serde_json::json;

    fn bytes(change: serde_json::Value) -> u64 {
        let mut tree = json!({
            "vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24,
            "max_position_embeddings": 32, "attention": {"kind": "mqa", "heads": 2, "head_dim": 8},
        });
        for (key, value) in change.as_object().unwrap() {
            tree[key] = value.clone();
        }
        let config: ModelConfig = serde_json::from_value(tree).unwrap();
        let weights = Weights::allocate(&Arena::new(), config.declare().unwrap(), DType::F32, false);
        weight_bytes_per_token(&config, &weights)
    }

    #[test]
    fn only_what_a_token_reads_counts() {
        // Attention (2 heads of q, one k, one v, o), two norms; MLP; final norm.
        let attention = 16 * (16 + 8 + 8 + 16) + 32;
        let rest = 2 * (attention + 3 * 16 * 24) + 16;
        assert_eq!(bytes(json!({})), 4 * (rest + 16 + 1600));
        assert_eq!(bytes(json!({"tie_word_embeddings": true})), 4 * (rest + 1600));
        let moe = json!({"experts": 8, "top_k": 2, "expert_size": 12, "shared_size": 4, "dense_layers": [0]});
        let mixture = 2 * 3 * 16 * 12 + 3 * 16 * 4 + 8 * 16;
        assert_eq!(bytes(json!({"moe": moe})), 4 * (rest - 3 * 16 * 24 + mixture + 16 + 1600));
    }
}
