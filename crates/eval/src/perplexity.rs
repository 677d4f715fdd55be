//! Running a model over windows.

use crate::windows::Window;
use keyfold_model::{LanguageModel, Sequences};

/// Target that is not scored.
const IGNORE: u32 = u32::MAX;

/// The loss of the tokens scored so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Tokens.
    pub tokens: u64,
    /// Their summed loss, in nats.
    pub nats: f64,
}

impl Score {
    /// e to the mean loss of a token.
    pub fn perplexity(&self) -> f64 {
        (self.nats / self.tokens as f64).exp()
    }

    /// Loss in bits for each of `bytes` bytes of text.
    pub fn bits_per_byte(&self, bytes: u64) -> f64 {
        self.nats / std::f64::consts::LN_2 / bytes as f64
    }
}

/// Scores `windows` of `ids`, each after `prefix`; `each` sees every window with its own score and returns whether to go on.
///
/// # Panics
/// When a window leaves `ids`, or an id is not below the model's vocabulary.
pub fn score(
    model: &LanguageModel,
    ids: &[u32],
    prefix: &[u32],
    windows: &[Window],
    mut each: impl FnMut(&Window, Score) -> bool,
) -> Score {
    let mut all = Score::default();
    for window in windows {
        let (tokens, scored) = (window.tokens(), window.scored());
        let inputs: Vec<u32> = prefix.iter().chain(&ids[tokens.clone()]).copied().collect();
        let skipped = prefix.len() + scored.start - tokens.start;
        let targets: Vec<u32> = (1..=inputs.len())
            .map(|next| if next < skipped { IGNORE } else { *inputs.get(next).unwrap_or(&IGNORE) })
            .collect();
        let loss = model.evaluate(&inputs, &targets, &Sequences::new(1, inputs.len()), None);
        let own = Score { tokens: scored.len() as u64, nats: loss.sum };
        all = Score { tokens: all.tokens + own.tokens, nats: all.nats + own.nats };
        if !each(window, own) {
            break;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Windows;
    use keyfold_tensor::Arena;

    /// The loss by definition: the logits of every prefix, one at a time.
    fn slow(model: &LanguageModel, inputs: &[u32], position: usize) -> f64 {
        let logits = model.logits(&inputs[..position], &Sequences::new(1, position)).to_vec();
        let vocab = model.config().vocab_size;
        let row: Vec<f64> = logits[(position - 1) * vocab..].iter().map(|logit| f64::from(*logit)).collect();
        let sum: f64 = row.iter().map(|logit| logit.exp()).sum();
        sum.ln() - row[inputs[position] as usize]
    }

    #[test]
    fn scores_are_those_of_single_predictions() {
        let config = serde_json::from_value(serde_json::json!({
            "vocab_size": 23, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24,
            "max_position_embeddings": 16, "attention": {"kind": "mfa", "heads": 2, "head_dim": 8},
        }))
        .unwrap();
        let model = LanguageModel::new(&config, 3, &Arena::poisoned()).unwrap();
        let ids: Vec<u32> = (0..29).map(|i| i * 7 % 23).collect();
        for (stride, prefix) in [(None, vec![]), (None, vec![5]), (Some(3), vec![]), (Some(3), vec![5, 2])] {
            let windows = Windows { context: 8, stride, prefix: prefix.len() }.over(ids.len()).unwrap();
            let (mut nats, mut tokens) = (0.0, 0);
            let got = score(&model, &ids, &prefix, &windows, |_, _| true);
            for window in &windows {
                let inputs: Vec<u32> = prefix.iter().chain(&ids[window.tokens()]).copied().collect();
                for place in window.scored() {
                    nats += slow(&model, &inputs, prefix.len() + place - window.tokens().start);
                    tokens += 1;
                }
            }
            assert_eq!(got.tokens, tokens);
            assert!((got.nats - nats).abs() < 1e-4 * nats, "{stride:?} {prefix:?}: {} for {nats}", got.nats);
            assert!((got.perplexity() - (nats / tokens as f64).exp()).abs() < 1e-2);
        }
        let windows = Windows { context: 8, stride: None, prefix: 0 }.over(ids.len()).unwrap();
        assert_eq!(score(&model, &ids, &[], &windows, |_, _| false).tokens, 4);
    }

    #[test]
    fn bits_per_byte_are_bits_per_byte() {
        let score = Score { tokens: 2, nats: 4.0 * std::f64::consts::LN_2 };
        assert!((score.bits_per_byte(8) - 0.5).abs() < 1e-12 && (score.perplexity() - 4.0).abs() < 1e-9);
    }
}
