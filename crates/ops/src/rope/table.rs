//! Angles of the rotary position embedding.

use rayon::prelude::*;

/// Positions whose angles are made from those of the first.
const RUN: usize = 64;

/// Which two channels of a head form the pair that is rotated. Checkpoints differ, and their weights go with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pairing {
    /// Channel `i` with channel `i + width / 2` (GPT-NeoX, Hugging Face's Llama).
    #[default]
    HalfSplit,
    /// Channel `2 i` with channel `2 i + 1` (the RoPE paper, Meta's Llama, DeepSeek).
    Interleaved,
}

/// `cos` and `sin` of `position * theta^(-2 i / width)` for pair `i` of each position; computed in f64, kept in f32.
#[derive(Clone, Debug)]
pub struct RopeTable {
    width: usize,
    positions: usize,
    pairing: Pairing,
    /// `[positions, width / 2]`.
    cos: Vec<f32>,
    /// As `cos`.
    sin: Vec<f32>,
    /// Only for interleaved pairs, `[positions, width]`: each cosine twice.
    cos_twice: Vec<f32>,
    /// As `cos_twice`: each sine twice, the first one negative.
    sin_signed: Vec<f32>,
    /// Copies of `cos`, then `sin`, by device.
    #[cfg(feature = "cuda")]
    copies: std::sync::Arc<std::sync::Mutex<Vec<(usize, keyfold_tensor::Tensor)>>>,
}

impl RopeTable {
    /// A table for half-split pairs of `width` channels and the positions `0..positions`.
    ///
    /// # Panics
    /// When `width` is odd.
    pub fn new(width: usize, theta: f64, positions: usize) -> Self {
        assert!(width.is_multiple_of(2), "rope: {width} channels do not form pairs");
        let frequencies: Vec<f64> =
            (0..width / 2).map(|i| theta.powf(-2.0 * i as f64 / width as f64)).collect();
        Self::of_frequencies(&frequencies, 1.0, positions)
    }

    /// A table for half-split pairs that turn by `frequencies[i]` radians per position; `amplitude` is a factor on all
    /// cosines and sines (YaRN's).
    pub fn of_frequencies(frequencies: &[f64], amplitude: f64, positions: usize) -> Self {
        let pairs = frequencies.len();
        let (mut cos, mut sin) = (vec![0f32; positions * pairs], vec![0f32; positions * pairs]);
        // The turns of a run's first position and of the steps within a run make up all others: few sines are computed.
        let turns = |position: usize, amplitude: f64| -> Vec<(f64, f64)> {
            let turn = |f: &f64| (position as f64 * f).sin_cos();
            frequencies.iter().map(turn).map(|(sin, cos)| (amplitude * sin, amplitude * cos)).collect()
        };
        let steps: Vec<_> = (0..RUN.min(positions)).map(|step| turns(step, 1.0)).collect();
        let runs = RUN * pairs.max(1);
        cos.par_chunks_mut(runs).zip(sin.par_chunks_mut(runs)).enumerate().for_each(|(run, (cos, sin))| {
            let first = turns(run * RUN, amplitude);
            let rows = cos.chunks_exact_mut(pairs.max(1)).zip(sin.chunks_exact_mut(pairs.max(1)));
            for ((cos, sin), step) in rows.zip(&steps) {
                let to = cos.iter_mut().zip(sin);
                for ((cos, sin), ((first_sin, first_cos), (step_sin, step_cos))) in
                    to.zip(first.iter().zip(step))
                {
                    *cos = (first_cos * step_cos - first_sin * step_sin) as f32;
                    *sin = (first_sin * step_cos + first_cos * step_sin) as f32;
                }
            }
        });
        Self {
            width: 2 * pairs,
            positions,
            pairing: Pairing::HalfSplit,
            cos,
            sin,
            cos_twice: Vec::new(),
            sin_signed: Vec::new(),
            #[cfg(feature = "cuda")]
            copies: std::sync::Arc::default(),
        }
    }

    /// All cosines, then all sines, in the memory of `gpu`.
    #[cfg(feature = "cuda")]
    pub(crate) fn on(&self, gpu: &keyfold_tensor::cuda::Gpu) -> keyfold_tensor::Tensor {
        let mut copies = self.copies.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, copy)) = copies.iter().find(|(index, _)| *index == gpu.index()) {
            return copy.clone();
        }
        let values = [self.cos.as_slice(), &self.sin].concat();
        let copy = crate::cuda::arena(gpu).tensor_of(1, values.len(), &values);
        copies.push((gpu.index(), copy.clone()));
        copy
    }

    /// The same angles for another choice of pairs.
    #[must_use]
    pub fn with_pairing(mut self, pairing: Pairing) -> Self {
        self.pairing = pairing;
        (self.cos_twice, self.sin_signed) = match pairing {
            Pairing::HalfSplit => (Vec::new(), Vec::new()),
            Pairing::Interleaved => (
                self.cos.iter().flat_map(|c| [*c, *c]).collect(),
                self.sin.iter().flat_map(|s| [-*s, *s]).collect(),
            ),
        };
        self
    }

    /// Rotated channels per head.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of positions.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Which channels form pairs.
    pub fn pairing(&self) -> Pairing {
        self.pairing
    }

    /// Cosines at `position`, one per pair.
    ///
    /// # Panics
    /// When the position is not in the table.
    pub fn cos(&self, position: usize) -> &[f32] {
        &self.cos[position * self.width / 2..][..self.width / 2]
    }

    /// Sines at `position`, one per pair.
    ///
    /// # Panics
    /// When the position is not in the table.
    pub fn sin(&self, position: usize) -> &[f32] {
        &self.sin[position * self.width / 2..][..self.width / 2]
    }

    /// Cosines and signed sines at `position`, one per channel: `y[c] = x[c] * cos[c] + x[c ^ 1] * sin[c]`.
    #[inline(always)]
    pub(super) fn per_channel(&self, position: usize) -> (&[f32], &[f32]) {
        let at = position * self.width..(position + 1) * self.width;
        (&self.cos_twice[at.clone()], &self.sin_signed[at])
    }
}
