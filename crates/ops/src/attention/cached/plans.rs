//! What a GPU is told about the sequences of a step: page tables, lengths and who reads what.

use super::Sequence;
use crate::{
    attention::paged::{Batch, Shape},
    indices::Indices,
};
#[cfg(feature = "cuda")]
use keyfold_tensor::Tensor;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Plans of the attention over a cache, each made by the first layer that needs it and used by all others of a step.
///
/// Kept from step to step, they stay in one place: recorded work ([`keyfold_tensor::Graph`]) sees each step's own sequences.
/// The host needs none.
#[derive(Debug, Default)]
pub struct Plans {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    /// By shape and the first query of the sequences.
    pub(super) batches: Vec<(Shape, usize, Batch)>,
    /// Rows of the tokens of a sequence, by its first query.
    pub(super) rows: Vec<(usize, Indices)>,
    /// Slopes of query heads.
    #[cfg(feature = "cuda")]
    pub(super) slopes: Vec<(Vec<f32>, Tensor)>,
    /// Pages that tables have room for, if more than the sequences have at first.
    #[cfg(feature = "cuda")]
    pub(super) most_pages: Option<usize>,
}

impl Plans {
    /// Plans whose page tables have room for `pages` pages a sequence.
    pub fn with_room(pages: usize) -> Self {
        #[cfg(feature = "cuda")]
        return Self { inner: Mutex::new(Inner { most_pages: Some(pages), ..Inner::default() }) };
        #[cfg(not(feature = "cuda"))]
        {
            let _ = pages;
            Self::default()
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a step can be recorded with these plans: all layers' attention reads the pages of all sequences in place.
    pub fn recordable(&self) -> bool {
        let inner = self.lock();
        let whole = inner.batches.iter().all(|(_, first, _)| *first == 0);
        !inner.batches.is_empty() && whole && inner.rows.is_empty()
    }

    /// The next step of the same sequences, as many as before, each with one new token.
    ///
    /// # Panics
    /// When these plans are not [recordable](Plans::recordable), or a sequence has more pages than at first.
    pub fn update(&self, sequences: &[Sequence<'_>]) {
        for (_, _, batch) in &mut self.lock().batches {
            let most = batch.most_pages();
            let (lengths, tables) = tables(sequences, Some(most));
            batch.update(&lengths, &tables);
        }
    }

    /// Plans anew from what lies on the device: the first thing that a recorded step does.
    pub fn plan(&self) {
        for (_, _, batch) in &self.lock().batches {
            batch.plan();
        }
    }

    /// Makes every sequence one token longer, on the device: its `positions`, and the `rows` of the cache that new tokens go
    /// to.
    ///
    /// # Panics
    /// As [`Plans::update`].
    pub fn advance(&self, positions: &Indices, rows: &Indices) {
        // Each knows its own lengths; all come to the same positions and rows.
        for (_, _, batch) in &self.lock().batches {
            batch.advance(positions, rows);
        }
    }
}

/// Lengths and page tables of `sequences`, tables padded to the longest, or to `most` pages.
pub(super) fn tables(sequences: &[Sequence<'_>], most: Option<usize>) -> (Vec<u32>, Vec<u32>) {
    let lengths = sequences.iter().map(|sequence| (sequence.past + sequence.new) as u32).collect();
    let longest = sequences.iter().map(|sequence| sequence.pages.len()).max().unwrap_or(0);
    let most = most.unwrap_or(longest);
    let mut tables = vec![0; most * sequences.len()];
    for (table, sequence) in tables.chunks_exact_mut(most.max(1)).zip(sequences) {
        let count = sequence.pages.len().min(most);
        table[..count].copy_from_slice(&sequence.pages[..count]);
    }
    (lengths, tables)
}
