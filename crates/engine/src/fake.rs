//! A runner without a model, for tests of what stands above it: its cache is a list of tokens, and the token that it makes
//! next depends on every token that it finds there. A row in a wrong page gives another text.

use crate::{
    request::{Constraint, Logprobs, Sampling, Token},
    runner::{Failure, Output, Runner, Work},
};
use std::{collections::HashSet, time::Duration};

/// A runner without a model.
#[derive(Clone, Debug)]
pub struct Fake {
    page_size: usize,
    /// Ids that come.
    alphabet: Vec<u32>,
    /// Which token of which place is in each row.
    rows: Vec<Option<(u32, usize)>>,
    /// Time that a batch takes.
    pub delay: Duration,
    /// Makes no token after this one.
    pub poison: Option<u32>,
    /// Computes no batch with this token.
    pub broken: Option<u32>,
}

/// What is remembered of a request.
pub struct FakeState {
    sampling: Sampling,
    constraint: Option<Box<dyn Constraint>>,
    draws: u64,
}

impl std::fmt::Debug for FakeState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeState").field("draws", &self.draws).finish_non_exhaustive()
    }
}

/// A batch with a token that breaks it.
#[derive(Debug, thiserror::Error)]
#[error("the token {0} breaks this runner")]
pub struct Broken(u32);

impl Fake {
    /// A runner whose cache has `pages`, and that writes texts in `alphabet`.
    pub fn new(pages: usize, page_size: usize, alphabet: Vec<u32>) -> Self {
        let rows = vec![None; pages * page_size];
        Self { page_size, alphabet, rows, delay: Duration::ZERO, poison: None, broken: None }
    }

    /// The text that follows `prompt`, made without any cache.
    pub fn text(alphabet: &[u32], prompt: &[u32], sampling: &Sampling, count: usize) -> Vec<u32> {
        let mut tokens = prompt.to_vec();
        for draw in 0..count as u64 {
            tokens.push(alphabet[next(&tokens, sampling, draw) as usize % alphabet.len()]);
        }
        tokens.split_off(prompt.len())
    }

    fn row(&self, pages: &[u32], place: usize) -> usize {
        pages[place / self.page_size] as usize * self.page_size + place % self.page_size
    }

    /// Writes the rows of all works, and checks that they keep out of each other's way.
    fn write<S>(&mut self, batch: &[Work<'_, S>]) {
        let mut written = HashSet::new();
        for work in batch {
            assert!(!work.tokens.is_empty(), "work without tokens");
            let end = work.past + work.tokens.len();
            let pages: HashSet<u32> = (work.past / self.page_size..end.div_ceil(self.page_size))
                .map(|index| work.pages[index])
                .collect();
            for page in pages {
                assert!(written.insert(page), "two works write page {page}");
            }
            for (token, place) in work.tokens.iter().zip(work.past..) {
                let row = self.row(work.pages, place);
                self.rows[row] = Some((*token, place));
            }
        }
        for work in batch {
            for page in &work.pages[..work.past / self.page_size] {
                assert!(!written.contains(page), "page {page} is read and written");
            }
        }
    }

    /// The first `count` tokens, as the pages have them.
    fn read<S>(&self, work: &Work<'_, S>, count: usize) -> Vec<u32> {
        (0..count)
            .map(|place| match self.rows[self.row(work.pages, place)] {
                Some((token, at)) if at == place => token,
                other => panic!("{}: row {place} holds {other:?}", work.id),
            })
            .collect()
    }
}

impl Runner for Fake {
    type State = FakeState;
    type Error = Broken;

    fn begin(
        &mut self,
        _prompt: &[u32],
        sampling: Sampling,
        constraint: Option<Box<dyn Constraint>>,
    ) -> FakeState {
        FakeState { sampling, constraint, draws: 0 }
    }

    fn run(&mut self, batch: &mut [Work<'_, FakeState>]) -> Result<Vec<Result<Output, Failure>>, Broken> {
        std::thread::sleep(self.delay);
        if let Some(token) =
            self.broken.filter(|broken| batch.iter().any(|work| work.tokens.contains(broken)))
        {
            return Err(Broken(token));
        }
        self.write(batch);
        Ok(batch.iter_mut().map(|work| self.output(work)).collect())
    }
}

impl Fake {
    fn output(&self, work: &mut Work<'_, FakeState>) -> Result<Output, Failure> {
        let end = work.past + work.tokens.len();
        let first = end - work.logits();
        let tokens = self.read(work, end);
        let scores = work.targets.iter().enumerate().map(|(row, target)| {
            assert!(tokens.get(first + row + 1).is_none_or(|token| token == target), "target {row}");
            score(&tokens[..=first + row], *target, &work.state.sampling)
        });
        let scores = scores.collect();
        let (tokens, complete) = work.choose(|row, state| {
            let before = &tokens[..=first + row];
            if before.last() == self.poison.as_ref() {
                return Err(Failure("a poisoned token".to_owned()));
            }
            self.choose(before, state)
        })?;
        Ok(Output { scores, tokens, complete })
    }

    fn choose(&self, before: &[u32], state: &mut FakeState) -> Result<(Token, bool), Failure> {
        let draw = next(before, &state.sampling, state.draws) as usize;
        state.draws += 1;
        let Some(constraint) = &mut state.constraint else {
            let id = self.alphabet[draw % self.alphabet.len()];
            let logprobs = state.sampling.logprobs.map(|_| score(before, id, &state.sampling));
            return Ok((Token { id, logprobs }, false));
        };
        let size = self.alphabet.iter().max().map_or(0, |id| *id as usize + 1);
        let mut logits = vec![f32::NEG_INFINITY; size];
        for id in &self.alphabet {
            logits[*id as usize] = 0.0;
        }
        constraint.mask(&mut logits).map_err(Failure)?;
        let allowed: Vec<u32> = (0..size as u32).filter(|id| logits[*id as usize] == 0.0).collect();
        let id = *allowed.get(draw % allowed.len().max(1)).ok_or(Failure("no token may come".to_owned()))?;
        let complete = constraint.accept(id).map_err(Failure)?;
        Ok((Token { id, logprobs: None }, complete))
    }
}

/// A number that depends on all tokens, but mostly repeats what followed the last two before.
fn next(tokens: &[u32], sampling: &Sampling, draw: u64) -> u64 {
    let hash = |tokens: &[u32]| tokens.iter().fold(7, |hash, token| mix(hash ^ u64::from(*token)));
    let all = hash(tokens) ^ u64::from((sampling.repetition_penalty - 1.0).to_bits());
    if sampling.temperature > 0.0 {
        return mix(all ^ mix(sampling.seed) ^ draw);
    }
    if all % 4 == 0 { all >> 8 } else { hash(&tokens[tokens.len().saturating_sub(2)..]) >> 8 }
}

fn score(before: &[u32], token: u32, sampling: &Sampling) -> Logprobs {
    let value = |id: u32| {
        let hash = before.iter().fold(u64::from(id), |hash, token| mix(hash ^ u64::from(*token)));
        -((hash % 1024) as f32) / 64.0
    };
    Logprobs {
        token: value(token),
        top: (0..sampling.logprobs.unwrap_or(0) as u32).map(|id| (id, value(id))).collect(),
    }
}

fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    let z = (z ^ (z >> 29)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    z ^ (z >> 32)
}
