//! How fast memory can be read, and how much of it decoding reads: weights are read once for every token, so their bytes
//! and the bandwidth bound its speed.

use keyfold_model::{
    ModelConfig,
    weights::{Part, Weights},
};
use rayon::prelude::*;
use std::{hint::black_box, time::Instant};

/// Readings to take the median of.
const READINGS: usize = 7;
/// Words that a thread takes at a time: small enough that no thread waits long for a slower one.
const PIECE: usize = 1 << 15;
/// Smaller buffers are measured as one of this size: they are read from caches, faster than a clock can tell.
const LEAST: usize = 1 << 20;

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

/// Bytes per second at which all threads together read a buffer of `bytes`: the median of several readings.
pub(super) fn read_bandwidth(bytes: u64) -> f64 {
    let words = (bytes as usize).max(LEAST) / size_of::<u64>();
    let mut buffer = vec![0u64; words];
    // Pages exist only once they are written.
    buffer.par_chunks_mut(PIECE).for_each(|part| part.iter_mut().zip(1..).for_each(|(word, i)| *word = i));
    let mut speeds: Vec<f64> = (0..READINGS)
        .map(|_| {
            let start = Instant::now();
            let total = buffer.par_chunks(PIECE).map(sum).reduce(|| 0, u64::wrapping_add);
            black_box(total);
            (words * size_of::<u64>()) as f64 / start.elapsed().as_secs_f64().max(1e-9)
        })
        .collect();
    speeds.sort_by(f64::total_cmp);
    speeds[READINGS / 2]
}

/// The sum of `words`, in many lanes so that reading is what takes time.
fn sum(words: &[u64]) -> u64 {
    let mut lanes = [0u64; 32];
    let (blocks, rest) = words.as_chunks::<32>();
    for block in blocks {
        for (lane, word) in lanes.iter_mut().zip(block) {
            *lane = lane.wrapping_add(*word);
        }
    }
    lanes.iter().chain(rest).fold(0, |sum, word| sum.wrapping_add(*word))
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

    #[test]
    fn sums_are_sums_and_speeds_are_positive() {
        let words: Vec<u64> = (0..1000).collect();
        assert_eq!(sum(&words), 499_500);
        assert!(read_bandwidth(0) > 1e6);
    }
}
