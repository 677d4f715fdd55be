//! The engine's runner with a model: rows go into pages of a [`PagedCache`], tokens are chosen from logits as
//! `keyfold generate` chooses them, so that the same prompt, seed and model give the same text alone and in a crowd.
//!
//! On a GPU tokens are drawn where the logits lie; only the rows that somebody wants to see come to the host.

mod rows;
mod sampling;

pub use sampling::SamplerState;

use keyfold_core::DType;
use keyfold_engine::{Constraint, Failure, Output, Runner, Sampling, Work};
use keyfold_model::{Chunk, ConfigError, Decoder, PagedCache};
use keyfold_tensor::{Arena, DeviceError, catch};
use rayon::prelude::*;
use rows::{Row, Rows};

/// A model and its pages.
pub struct ModelRunner {
    decoder: Decoder,
    cache: PagedCache,
    /// For what is told to the device about choices.
    arena: Arena,
}

impl ModelRunner {
    /// `pages` pages of `page_size` tokens for a model, planes stored as `dtype`.
    ///
    /// # Errors
    /// As [`PagedCache::new`].
    pub fn new(decoder: Decoder, pages: usize, page_size: usize, dtype: DType) -> Result<Self, ConfigError> {
        let cache = decoder.paged_cache(pages, page_size, dtype)?;
        let arena = cache.layers().next().map_or_else(Arena::new, Arena::beside);
        Ok(Self { decoder, cache, arena })
    }

    /// The pages.
    pub fn cache(&self) -> &PagedCache {
        &self.cache
    }
}

impl Runner for ModelRunner {
    type State = SamplerState;
    type Error = DeviceError;

    fn begin(
        &mut self,
        prompt: &[u32],
        sampling: Sampling,
        constraint: Option<Box<dyn Constraint>>,
    ) -> SamplerState {
        SamplerState::new(prompt, &sampling, constraint)
    }

    fn run(
        &mut self,
        batch: &mut [Work<'_, SamplerState>],
    ) -> Result<Vec<Result<Output, Failure>>, DeviceError> {
        let chunks: Vec<Chunk<'_>> = batch
            .iter()
            .map(|work| Chunk {
                tokens: work.tokens,
                past: work.past,
                pages: work.pages,
                logits: work.logits(),
            })
            .collect();
        let rows = catch(|| {
            let logits = self.decoder.forward(&chunks, &mut self.cache);
            Rows::new(&logits, batch, &self.arena)
        })?;
        let mut all = rows.iter();
        let rows: Vec<Vec<Row<'_>>> =
            batch.iter().map(|work| all.by_ref().take(work.logits()).collect()).collect();
        // Each chooses from its own rows with its own random numbers: the order does not matter.
        let outputs = batch.par_iter_mut().zip(&rows).map(|(work, rows)| output(work, rows));
        Ok(outputs.collect())
    }
}

fn output(work: &mut Work<'_, SamplerState>, rows: &[Row<'_>]) -> Result<Output, Failure> {
    let (count, targets) = (work.state.top_logprobs(), work.targets);
    let score =
        |(target, row): (&u32, &Row<'_>)| row.logits().map(|row| sampling::logprobs(row, *target, count));
    let scores = targets.par_iter().zip(rows).map(score).collect::<Result<_, Failure>>()?;
    let (tokens, complete) = work.choose(|row, state| match rows[row] {
        Row::Logits(logits) => state.choose(logits),
        Row::Drawn(drawn) => state.chosen(drawn),
    })?;
    Ok(Output { scores, tokens, complete })
}
