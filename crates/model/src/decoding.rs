//! Decoding that goes on by itself: each step chooses its tokens and the next one computes them.

use crate::{
    cache::{Chunk, PagedCache},
    decoder::Decoder,
    recorded::{GoesOn, KEPT, Recorded},
};
use keyfold_ops::sample::{self, Choice, Choices, OUTCOME, SampleError};
use keyfold_tensor::{Device, Mailbox};
use std::collections::VecDeque;

/// Steps on a GPU whose tokens the host may read late; a mailbox has as many slots.
const SLOTS: usize = 64;
/// Steps that a GPU should have before it, so that it never waits for the host.
const LEAD: usize = 4;

/// Sequences that are decoded on from a token each.
///
/// On a GPU a step is a recorded graph that draws its tokens, embeds them and moves on. The host starts steps and reads
/// their tokens while later ones are computed. On the host a step is computed when it is asked for.
pub struct Decoding<'a> {
    decoder: &'a Decoder,
    cache: &'a mut PagedCache,
    sequences: Vec<Sequence>,
    /// A GPU's step, taken from the cache as long as it is used.
    recorded: Option<Recorded>,
    /// Tokens of steps of the host.
    made: VecDeque<Vec<Result<u32, SampleError>>>,
    asked: usize,
    read: usize,
}

struct Sequence {
    /// The last token, where the host chooses.
    token: u32,
    past: usize,
    pages: Vec<u32>,
    choice: Choice,
}

impl Decoder {
    /// Decodes the sequences of `batch` on from their tokens, one each, choosing each one's next ones by its choice. On a GPU
    /// this records a step, unless `cache` has one from before; the cache's rows behind the sequences are written meanwhile.
    ///
    /// # Errors
    /// When a number of a choice is out of range.
    ///
    /// # Panics
    /// When a chunk has not one token or does not fit its pages, or there is not a choice for each.
    pub fn decode<'a>(
        &'a self,
        batch: &[Chunk<'_>],
        choices: Vec<Choice>,
        cache: &'a mut PagedCache,
    ) -> Result<Decoding<'a>, SampleError> {
        assert!(batch.iter().all(|chunk| chunk.tokens.len() == 1), "decoding on from one token a sequence");
        assert_eq!(batch.len(), choices.len(), "decoding: a choice for each sequence");
        choices.iter().try_for_each(|choice| choice.sampler.validate())?;
        let recorded = self.step_that_goes_on(batch, &choices, cache)?;
        let sequences = batch.iter().zip(choices).map(|(chunk, choice)| Sequence {
            token: chunk.tokens[0],
            past: chunk.past,
            pages: chunk.pages.to_vec(),
            choice,
        });
        let sequences = sequences.collect();
        Ok(Decoding { decoder: self, cache, sequences, recorded, made: VecDeque::new(), asked: 0, read: 0 })
    }

    /// A recorded step for `batch` that chooses its own tokens, if there can be one.
    fn step_that_goes_on(
        &self,
        batch: &[Chunk<'_>],
        choices: &[Choice],
        cache: &mut PagedCache,
    ) -> Result<Option<Recorded>, SampleError> {
        let vocabulary = self.config().vocab_size;
        if !self.records() || batch.is_empty() || !sample::draws_itself(self.device(), vocabulary) {
            return Ok(None);
        }
        let batch: Vec<Chunk<'_>> = batch.iter().map(|chunk| Chunk { logits: 1, ..*chunk }).collect();
        let most = batch.iter().map(|chunk| chunk.pages.len()).max().unwrap_or(1);
        let known = cache.recorded.iter().position(|step| step.fits(self, batch.len(), most, true));
        let mut recorded = match known {
            Some(at) => Some(cache.recorded.remove(at)),
            None => {
                let goes_on = GoesOn::new(self, vocabulary, choices)?;
                // What this computes is computed again: the first step is like all others.
                let recorded = Recorded::new(self, &batch, cache, most.next_power_of_two(), goes_on).1;
                if recorded.is_none() {
                    self.never_records();
                }
                recorded
            }
        };
        if let Some(recorded) = &mut recorded {
            recorded.begin(&batch, cache.page_size(), choices)?;
        }
        Ok(recorded)
    }
}

impl GoesOn {
    /// None on the host.
    fn new(decoder: &Decoder, vocabulary: usize, choices: &[Choice]) -> Result<Option<Self>, SampleError> {
        let rows = choices.iter().cloned().map(Some).collect();
        let choices = Choices::new(decoder.arena(), vocabulary, rows)?;
        let mailbox = Mailbox::new(decoder.device(), SLOTS, OUTCOME * choices.len());
        Ok(mailbox.map(|mailbox| Self { choices, mailbox }))
    }
}

impl Decoding<'_> {
    /// One more token for each sequence. On a GPU this does not wait for it. A sequence whose token could not be chosen goes
    /// on with token 0.
    ///
    /// # Panics
    /// When a sequence has no room left in its pages.
    pub fn step(&mut self) {
        let size = self.cache.page_size();
        let room = self.sequences.iter().all(|sequence| sequence.past < sequence.pages.len() * size);
        assert!(room, "decoding beyond its pages");
        if let Some((recorded, mailbox)) =
            self.recorded.as_ref().and_then(|step| Some((step, step.mailbox()?)))
        {
            recorded.start();
            mailbox.mark(self.asked % SLOTS);
        } else {
            self.step_here();
        }
        self.asked += 1;
        self.sequences.iter_mut().for_each(|sequence| sequence.past += 1);
    }

    fn step_here(&mut self) {
        let batch: Vec<Chunk<'_>> = (self.sequences.iter())
            .map(|sequence| Chunk {
                tokens: std::slice::from_ref(&sequence.token),
                past: sequence.past,
                pages: &sequence.pages,
                logits: 1,
            })
            .collect();
        let mut logits = self.decoder.forward(&batch, self.cache).to_vec();
        let rows = logits.chunks_mut(self.decoder.config().vocab_size);
        let chosen: Vec<_> =
            rows.zip(&mut self.sequences).map(|(row, sequence)| sequence.choice.choose(row)).collect();
        for (sequence, chosen) in self.sequences.iter_mut().zip(&chosen) {
            sequence.token = *chosen.as_ref().unwrap_or(&0);
        }
        self.made.push_back(chosen);
        if self.made.len() > SLOTS {
            self.made.pop_front();
        }
    }

    /// Steps that were asked for and whose tokens were not read.
    pub fn ahead(&self) -> usize {
        self.asked - self.read
    }

    /// Steps that are worth asking for ahead: one where nothing is computed meanwhile.
    pub fn lead(&self) -> usize {
        if self.decoder.device() == Device::Cpu || self.recorded.is_none() { 1 } else { LEAD }
    }

    /// The tokens of the first step that was not read; waits for it. Of more than 64 steps that were not read the last 64 are
    /// kept. None when all were read.
    pub fn read(&mut self) -> Option<Vec<Result<u32, SampleError>>> {
        if self.ahead() == 0 {
            return None;
        }
        self.read = self.read.max(self.asked.saturating_sub(SLOTS));
        let slot = self.read % SLOTS;
        self.read += 1;
        match self.recorded.as_ref().and_then(Recorded::mailbox) {
            Some(mailbox) => Some(sample::outcomes(&mailbox.read(slot))),
            None => self.made.pop_front(),
        }
    }
}

impl Drop for Decoding<'_> {
    fn drop(&mut self) {
        if let Some(recorded) = self.recorded.take() {
            self.cache.recorded.truncate(KEPT - 1);
            self.cache.recorded.insert(0, recorded);
        }
    }
}
