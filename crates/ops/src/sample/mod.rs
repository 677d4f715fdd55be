//! Choosing the next token from a row of logits.

mod choices;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod reference;
mod repetition;
mod rng;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod twin;

pub use choices::{Choice, Choices, OUTCOME, outcomes};
pub use repetition::Repetition;
pub use rng::Rng;

use crate::{dispatch::by_device, indices::Indices};
use keyfold_tensor::{Device, Mailbox, Tensor};
use std::{error::Error, fmt};

/// How to choose. The filters apply in this order: temperature, top-k, top-p, min-p, each to what the one before left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// Divides the logits; 0 always takes the likeliest token (of equal ones the first).
    pub temperature: f32,
    /// Keep this many of the likeliest tokens.
    pub top_k: Option<usize>,
    /// Keep the smallest set of the likeliest tokens that holds at least this share of the probability; 1 keeps all.
    pub top_p: f32,
    /// Keep the tokens that are at least this fraction as likely as the likeliest one; 0 keeps all.
    pub min_p: f32,
}

impl Default for Sampler {
    /// The model's own distribution.
    fn default() -> Self {
        Self { temperature: 1.0, top_k: None, top_p: 1.0, min_p: 0.0 }
    }
}

/// Why no token could be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SampleError {
    /// The temperature is negative, infinite or NaN.
    Temperature(f32),
    /// `top_k` is 0.
    TopK,
    /// `top_p` is not above 0 and at most 1.
    TopP(f32),
    /// `min_p` is not between 0 and 1.
    MinP(f32),
    /// The penalty of tokens that came before is outside [`Repetition::RANGE`].
    RepetitionPenalty(f32),
    /// The logit of `token` is NaN or positive infinity.
    Logit {
        /// The first such token.
        token: usize,
        /// Its logit.
        value: f32,
    },
    /// There is no token, or each has the logit negative infinity.
    NoToken,
}

impl fmt::Display for SampleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Temperature(x) => write!(f, "temperature is {x}: expected a finite number, at least 0"),
            Self::TopK => f.write_str("top_k is 0: expected at least 1"),
            Self::TopP(x) => write!(f, "top_p is {x}: expected a number above 0 and at most 1"),
            Self::MinP(x) => write!(f, "min_p is {x}: expected a number from 0 to 1"),
            Self::RepetitionPenalty(x) => {
                let (least, most) = (Repetition::RANGE.start(), Repetition::RANGE.end());
                write!(f, "repetition_penalty is {x}: expected a number from {least} to {most}")
            }
            Self::Logit { token, value } => write!(f, "the logit of token {token} is {value}: cannot sample"),
            Self::NoToken => f.write_str("no token has a logit above negative infinity: cannot sample"),
        }
    }
}

impl Error for SampleError {}

impl Sampler {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Checks the numbers, which usually come from a user.
    ///
    /// # Errors
    /// Names the first one that is out of range.
    pub fn validate(&self) -> Result<(), SampleError> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            Err(SampleError::Temperature(self.temperature))
        } else if self.top_k == Some(0) {
            Err(SampleError::TopK)
        } else if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            Err(SampleError::TopP(self.top_p))
        } else if !(0.0..=1.0).contains(&self.min_p) {
            Err(SampleError::MinP(self.min_p))
        } else {
            Ok(())
        }
    }

    /// Whether a token takes a random number.
    pub fn takes_number(&self) -> bool {
        self.temperature != 0.0
    }

    /// Draws a token; the same logits and the same `rng` give the same one. Takes one number from `rng`, or none at
    /// temperature 0. A logit of negative infinity rules its token out.
    ///
    /// # Shapes
    /// - logits: `[vocabulary]`
    ///
    /// # Errors
    /// When the numbers are out of range (see [`Sampler::validate`]) or the logits allow no choice.
    pub fn sample(&self, logits: &[f32], rng: &mut Rng) -> Result<u32, SampleError> {
        self.validate()?;
        let best = likeliest(logits)?;
        if self.temperature == 0.0 {
            return Ok(best as u32);
        }
        Ok(cpu::sample(self, logits, logits[best], rng))
    }
}

/// Draws a token from each row of logits, as [`Sampler::sample`] does from the same logits with the same numbers. On a GPU the
/// host does not wait; it learns of the tokens by [`Choices::read`], or from the `mailbox`, whose slots of two words a row are
/// used in turn, one a call since the last [`Choices::update`], and are read by [`outcomes`]. `ids` become the tokens, 0 where
/// none could be drawn.
///
/// # Shapes
/// - logits: `[rows, vocabulary]`, f32
/// - ids: `[rows]`
///
/// # Panics
/// When the shapes differ, or there is a mailbox although [`draws_itself`] says no.
pub fn draw(logits: &Tensor, choices: &mut Choices, ids: Option<&mut Indices>, mailbox: Option<&Mailbox>) {
    let rows = logits.rows();
    assert_eq!(rows, choices.len(), "sample: a choice for each row");
    assert!(ids.as_ref().is_none_or(|ids| ids.len() == rows), "sample: an id for each row");
    assert!(
        mailbox.is_none_or(|mailbox| mailbox.words() == OUTCOME * rows),
        "sample: a mailbox for each row"
    );
    let drawn = by_device!(logits, false, cuda::draw(logits, choices, ids.as_deref(), mailbox));
    if !drawn {
        assert!(mailbox.is_none(), "sample: a mailbox of a device that does not draw by itself");
        draw_here(logits, choices, ids);
    }
}

/// Whether [`draw`] chooses on `device` without the host: Hopper or later, and a vocabulary that the shared memory of eight
/// multiprocessors holds (about 380,000 tokens).
pub fn draws_itself(device: Device, vocabulary: usize) -> bool {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(index) => {
            keyfold_tensor::cuda::gpu(index).is_ok_and(|gpu| cuda::serves(gpu, vocabulary))
        }
        _ => {
            let _ = vocabulary;
            false
        }
    }
}

/// [`draw`] by the host.
fn draw_here(logits: &Tensor, choices: &mut Choices, ids: Option<&mut Indices>) {
    let (mut values, cols) = (logits.to_vec(), logits.cols());
    let drawn: Vec<[u32; OUTCOME]> = (choices.rows.iter_mut().enumerate())
        .map(|(row, choice)| match choice {
            None => [0; OUTCOME],
            Some(choice) => choices::outcome(choice.choose(&mut values[row * cols..][..cols])),
        })
        .collect();
    if let Some(ids) = ids {
        let id = |[token, bits]: &[u32; OUTCOME]| if *bits == 0 && *token != u32::MAX { *token } else { 0 };
        ids.overwrite(&drawn.iter().map(id).collect::<Vec<_>>());
    }
    choices.outcomes.overwrite(drawn.as_flattened());
}

/// The likeliest token of each row, of equal ones the first; 0 where no logit is above negative infinity.
///
/// # Shapes
/// - logits: `[rows, vocabulary]`
pub fn likeliest_rows(logits: &Tensor) -> Vec<u32> {
    let first_largest = |row: &[f32]| {
        let larger = |best: (u32, f32), (token, value): (usize, &f32)| {
            if *value > best.1 { (token as u32, *value) } else { best }
        };
        row.iter().enumerate().fold((0, f32::NEG_INFINITY), larger).0
    };
    logits.to_vec().chunks(logits.cols().max(1)).map(first_largest).collect()
}

/// The first of the largest logits.
fn likeliest(logits: &[f32]) -> Result<usize, SampleError> {
    let mut best = None;
    let mut max = f32::NEG_INFINITY;
    for (token, value) in logits.iter().enumerate() {
        if value.is_nan() || *value == f32::INFINITY {
            return Err(SampleError::Logit { token, value: *value });
        }
        if *value > max {
            (best, max) = (Some(token), *value);
        }
    }
    best.ok_or(SampleError::NoToken)
}
