//! Making tokens that came before less likely.

use super::SampleError;

/// Makes tokens that came before less likely: each one's logit is divided by the penalty where it is above zero and multiplied
/// by it where it is below, once, however often the token came (Keskar et al. 2019, arXiv 1909.05858, section 4.1; the
/// case below zero as `transformers` has it). 1 changes nothing, less than 1 favours repetition.
#[derive(Clone, Debug)]
pub struct Repetition {
    penalty: f32,
    /// A bit for each token that came.
    seen: Vec<u64>,
}

impl Repetition {
    /// The least and the greatest penalty: no finite logit of a model becomes infinite by them.
    pub const RANGE: std::ops::RangeInclusive<f32> = 0.01..=100.0;

    /// No token has come yet.
    ///
    /// # Errors
    /// When the penalty is outside [`Repetition::RANGE`].
    pub fn new(penalty: f32) -> Result<Self, SampleError> {
        if Self::RANGE.contains(&penalty) {
            Ok(Self { penalty, seen: Vec::new() })
        } else {
            Err(SampleError::RepetitionPenalty(penalty))
        }
    }

    /// Changes nothing.
    pub fn off() -> Self {
        Self { penalty: 1.0, seen: Vec::new() }
    }

    /// What logits are divided or multiplied by.
    pub(super) fn penalty(&self) -> f32 {
        self.penalty
    }

    /// A bit for each of `vocabulary` tokens, in whole words: whether it came.
    pub(super) fn words(&self, vocabulary: usize) -> impl Iterator<Item = u32> {
        let halves = self.seen.iter().flat_map(|word| [*word as u32, (*word >> 32) as u32]);
        halves.chain(std::iter::repeat(0)).take(vocabulary.div_ceil(32))
    }

    /// Whether logits stay as they are.
    pub fn is_off(&self) -> bool {
        self.penalty == 1.0
    }

    /// These tokens came: ids of the model's vocabulary, for each of which a bit is kept.
    pub fn see(&mut self, tokens: &[u32]) {
        if self.is_off() {
            return;
        }
        for token in tokens {
            let word = *token as usize / 64;
            if word >= self.seen.len() {
                self.seen.resize(word + 1, 0);
            }
            self.seen[word] |= 1 << (token % 64);
        }
    }

    /// Changes the logits of the tokens that came.
    ///
    /// # Shapes
    /// - logits: `[vocabulary]`
    pub fn apply(&self, logits: &mut [f32]) {
        for (word, logits) in self.seen.iter().zip(logits.chunks_mut(64)) {
            let mut bits = *word;
            while bits != 0 {
                if let Some(logit) = logits.get_mut(bits.trailing_zeros() as usize) {
                    *logit = if *logit < 0.0 { *logit * self.penalty } else { *logit / self.penalty };
                }
                bits &= bits - 1;
            }
        }
    }
}
