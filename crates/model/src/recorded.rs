//! Steps of decoding that are recorded once and started as a whole: CUDA graphs.
//!
//! A step of one token a sequence asks the same of a GPU every time, hundreds of kernels of a few microseconds each. What
//! changes (tokens, positions, rows, lengths, page tables) lies in [`Inputs`] that stay where they are. Numbers of sequences
//! are rounded up, so that few steps are recorded; sequences that are not there write to a page of nobody.

use crate::{
    cache::{Chunk, PagedCache},
    decoder::Decoder,
    placement::Inputs,
};
use keyfold_ops::sample;
use keyfold_tensor::{Arena, Graph, Tensor};

/// Recorded steps that a cache keeps: each holds the memory of its values.
const KEPT: usize = 24;

/// A step for so many sequences of so many pages at most.
pub(crate) struct Recorded {
    /// Which decoder's.
    decoder: u64,
    sequences: usize,
    most_pages: usize,
    inputs: Inputs,
    /// [sequences, vocab].
    logits: Tensor,
    graph: Graph,
    /// What the step's values lie in; for nothing else, since starting the graph overwrites it.
    _arena: Arena,
}

/// Sequences of a recorded step for this many.
fn rounded(sequences: usize) -> usize {
    match sequences {
        0..=2 => sequences,
        // Products of 3 to 7 rows are slower than those of 8.
        3..=64 => sequences.next_multiple_of(8),
        _ => sequences.next_multiple_of(32),
    }
}

impl Recorded {
    /// Computes the step of `batch` and records it for the next ones, if it can be recorded. With `goes_on` each step chooses
    /// the likeliest tokens and makes itself ready for them. Also the logits of this step.
    fn new(
        decoder: &Decoder,
        batch: &[Chunk<'_>],
        cache: &PagedCache,
        most_pages: usize,
        goes_on: bool,
    ) -> (Tensor, Option<Self>) {
        let arena = decoder.arena().another();
        let mut inputs = Inputs::new(batch, cache.page_size(), Some(most_pages), decoder.arena());
        let step = |inputs: &mut Inputs| {
            let logits = decoder.compute(batch, inputs, cache, &arena);
            if goes_on {
                sample::greedy(&logits, &mut inputs.ids);
                inputs.plans.advance(&inputs.positions, &inputs.rows);
            }
            logits
        };
        let logits = step(&mut inputs);
        let first = decoder.copy(&logits);
        drop(logits);
        if !inputs.plans.recordable() {
            return (first, None);
        }
        let mut recorded = None;
        let graph = Graph::record(arena.device(), || {
            inputs.plans.plan();
            recorded = Some(step(&mut inputs));
        });
        let recorded = graph.zip(recorded).map(|(graph, logits)| Self {
            decoder: decoder.id(),
            sequences: batch.len(),
            most_pages,
            inputs,
            logits,
            graph,
            _arena: arena,
        });
        (first, recorded)
    }
}

impl Decoder {
    /// The logits of a step of one token a sequence, all of which want theirs, by a recorded step if there can be one.
    pub(crate) fn recorded_step(&self, batch: &[Chunk<'_>], cache: &mut PagedCache) -> Option<Tensor> {
        let single = |chunk: &Chunk<'_>| chunk.tokens.len() == 1 && chunk.logits == 1;
        if !self.records() || batch.is_empty() || !batch.iter().all(single) {
            return None;
        }
        let (count, page_size, scrap) = (rounded(batch.len()), cache.page_size(), [cache.scrap()]);
        let mut padded = batch.to_vec();
        padded.resize(count, Chunk { tokens: &[0], past: 0, pages: &scrap, logits: 1 });
        let most = batch.iter().map(|chunk| chunk.pages.len()).max().unwrap_or(1);
        let fits = |recorded: &&mut Recorded| {
            recorded.decoder == self.id() && recorded.sequences == count && recorded.most_pages >= most
        };
        if let Some(recorded) = cache.recorded.iter_mut().find(fits) {
            recorded.inputs.update(&padded, page_size);
            recorded.graph.start();
            return Some(self.copy(&recorded.logits.row_range(0, batch.len())));
        }
        let (logits, recorded) = Recorded::new(self, &padded, cache, most.next_power_of_two(), false);
        match recorded {
            None => self.never_records(),
            Some(recorded) => {
                cache.recorded.truncate(KEPT - 1);
                cache.recorded.insert(0, recorded);
            }
        }
        Some(logits.row_range(0, batch.len()))
    }

    /// Decodes the sequences of `batch` on from their tokens, one each, always taking the likeliest next one.
    ///
    /// # Panics
    /// When a chunk has not one token, or does not fit its pages.
    pub fn greedy<'a>(&'a self, batch: &[Chunk<'_>], cache: &'a mut PagedCache) -> Greedy<'a> {
        assert!(
            batch.iter().all(|chunk| chunk.tokens.len() == 1),
            "greedy decoding from one token a sequence"
        );
        let tokens = batch.iter().flat_map(|chunk| chunk.tokens).copied().collect();
        let past = batch.iter().map(|chunk| chunk.past).collect();
        let pages = batch.iter().map(|chunk| chunk.pages.to_vec()).collect();
        Greedy { decoder: self, cache, tokens, past, pages, recorded: None }
    }
}

/// Greedy decoding of some sequences that asks nothing of the host but to go on: on a GPU a step chooses its tokens itself.
pub struct Greedy<'a> {
    decoder: &'a Decoder,
    cache: &'a mut PagedCache,
    /// The last tokens that the host knows.
    tokens: Vec<u32>,
    past: Vec<usize>,
    pages: Vec<Vec<u32>>,
    recorded: Option<Recorded>,
}

impl Greedy<'_> {
    /// One more token for each sequence. On a GPU this does not wait for it.
    ///
    /// # Panics
    /// When a sequence has no room left in its pages.
    pub fn step(&mut self) {
        let size = self.cache.page_size();
        let room = self.past.iter().zip(&self.pages).all(|(past, pages)| *past < pages.len() * size);
        assert!(room, "greedy decoding beyond its pages");
        if let Some(recorded) = &self.recorded {
            recorded.graph.start();
        } else {
            let parts = self.tokens.iter().zip(&self.past).zip(&self.pages);
            let batch: Vec<Chunk<'_>> = parts
                .map(|((token, past), pages)| Chunk {
                    tokens: std::slice::from_ref(token),
                    past: *past,
                    pages,
                    logits: 1,
                })
                .collect();
            if self.decoder.records() {
                let most = self.pages.iter().map(Vec::len).max().unwrap_or(1);
                let (logits, recorded) = Recorded::new(self.decoder, &batch, self.cache, most, true);
                if recorded.is_none() {
                    self.decoder.never_records();
                    self.tokens = sample::likeliest_rows(&logits);
                }
                self.recorded = recorded;
            } else {
                self.tokens = sample::likeliest_rows(&self.decoder.forward(&batch, self.cache));
            }
        }
        self.past.iter_mut().for_each(|past| *past += 1);
    }

    /// The last token of each sequence; waits for the step that makes them.
    pub fn tokens(&mut self) -> &[u32] {
        if let Some(recorded) = &mut self.recorded {
            self.tokens.clear();
            self.tokens.extend_from_slice(recorded.inputs.ids.read());
        }
        &self.tokens
    }
}
