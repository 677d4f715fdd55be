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
use keyfold_ops::sample::{self, Choice, Choices, SampleError};
use keyfold_tensor::{Arena, Graph, Mailbox, Tensor};

/// Recorded steps that a cache keeps: each holds the memory of its values.
pub(crate) const KEPT: usize = 24;

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
    /// What a step needs that goes on by itself.
    goes_on: Option<GoesOn>,
    /// What the step's values lie in; for nothing else, since starting the graph overwrites it.
    _arena: Arena,
}

/// How a step chooses its tokens, and tells the host of them.
pub(crate) struct GoesOn {
    pub(crate) choices: Choices,
    pub(crate) mailbox: Mailbox,
}

/// Sequences of a recorded step for this many.
fn rounded(sequences: usize) -> usize {
    match sequences {
        0..=2 => sequences,
        // Products of 3 to 7 rows take no less time than those of 8.
        3..=64 => sequences.next_multiple_of(8),
        _ => sequences.next_multiple_of(32),
    }
}

impl Recorded {
    /// Computes the step of `batch` and records it for the next ones, if it can be recorded. With `goes_on` each step chooses
    /// tokens and makes itself ready for them. Also the logits of this step.
    pub(crate) fn new(
        decoder: &Decoder,
        batch: &[Chunk<'_>],
        cache: &PagedCache,
        most_pages: usize,
        mut goes_on: Option<GoesOn>,
    ) -> (Tensor, Option<Self>) {
        let arena = decoder.arena().another();
        let mut inputs = Inputs::new(batch, cache.page_size(), Some(most_pages), decoder.arena());
        let mut step = |inputs: &mut Inputs| {
            let logits = decoder.compute(batch, inputs, cache, &arena);
            if let Some(GoesOn { choices, mailbox }) = &mut goes_on {
                sample::draw(&logits, choices, Some(&mut inputs.ids), Some(mailbox));
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
            goes_on,
            _arena: arena,
        });
        (first, recorded)
    }

    /// Whether this is a step of `decoder` for so many sequences of so many pages that goes on by itself, or does not.
    pub(crate) fn fits(&self, decoder: &Decoder, sequences: usize, pages: usize, goes_on: bool) -> bool {
        let sizes = self.sequences == sequences && self.most_pages >= pages;
        sizes && self.decoder == decoder.id() && self.goes_on.is_some() == goes_on
    }

    /// Makes a step that goes on by itself ready for these sequences and choices.
    pub(crate) fn begin(
        &mut self,
        batch: &[Chunk<'_>],
        page_size: usize,
        choices: &[Choice],
    ) -> Result<(), SampleError> {
        self.inputs.overwrite(batch, page_size);
        match &mut self.goes_on {
            Some(GoesOn { choices: own, .. }) => own.update(choices.iter().cloned().map(Some).collect()),
            None => Ok(()),
        }
    }

    /// Where its tokens are told.
    pub(crate) fn mailbox(&self) -> Option<&Mailbox> {
        self.goes_on.as_ref().map(|goes_on| &goes_on.mailbox)
    }

    /// Gives the step to the device.
    pub(crate) fn start(&self) {
        self.graph.start();
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
        let fits = |recorded: &&mut Recorded| recorded.fits(self, count, most, false);
        if let Some(recorded) = cache.recorded.iter_mut().find(fits) {
            recorded.inputs.update(&padded, page_size);
            recorded.graph.start();
            return Some(self.copy(&recorded.logits.row_range(0, batch.len())));
        }
        let (logits, recorded) = Recorded::new(self, &padded, cache, most.next_power_of_two(), None);
        match recorded {
            None => self.never_records(),
            Some(recorded) => {
                cache.recorded.truncate(KEPT - 1);
                cache.recorded.insert(0, recorded);
            }
        }
        Some(logits.row_range(0, batch.len()))
    }
}
