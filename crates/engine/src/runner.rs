//! What computes a batch.

use crate::request::{Constraint, Logprobs, RequestId, Sampling, Token};

/// Why a token could not be chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Failure(pub String);

/// Computes batches: a model, or a fake one.
pub trait Runner {
    /// What is remembered from token to token of a request: random numbers, counts, the place in a constraint.
    type State;
    /// Why a whole batch failed.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The state of a new request.
    fn begin(
        &mut self,
        prompt: &[u32],
        sampling: Sampling,
        constraint: Option<Box<dyn Constraint>>,
    ) -> Self::State;

    /// Computes the rows of all tokens into their pages and chooses tokens; an entry for each work, in order. Two works
    /// never write the same page, and what comes of one must not depend on the others.
    ///
    /// # Errors
    /// When nothing of the batch was computed. An entry that is an error ends that request alone.
    fn run(
        &mut self,
        batch: &mut [Work<'_, Self::State>],
    ) -> Result<Vec<Result<Output, Failure>>, Self::Error>;
}

/// The part of a batch that belongs to one request.
#[derive(Debug)]
pub struct Work<'a, S> {
    /// The request.
    pub id: RequestId,
    /// What the runner remembers for it.
    pub state: &'a mut S,
    /// Tokens to compute.
    pub tokens: &'a [u32],
    /// Tokens before them, whose rows are in the pages.
    pub past: usize,
    /// Where the rows lie: token `i` in page `pages[i / page_size]`.
    pub pages: &'a [u32],
    /// The tokens that the first rows of logits are to be compared with.
    pub targets: &'a [u32],
    /// Whether the last row of logits that is no guess's chooses a token.
    pub sample: bool,
    /// How many of the last `tokens` are guesses.
    pub guesses: usize,
    /// Tokens that end the text: nothing is chosen behind them.
    pub ends: &'a [u32],
}

/// What came of a [`Work`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Output {
    /// One for each target.
    pub scores: Vec<Logprobs>,
    /// Tokens chosen: none, or one and one more for each guess that was right.
    pub tokens: Vec<Token>,
    /// Whether the constraint is fulfilled by the last token.
    pub complete: bool,
}

impl<S> Work<'_, S> {
    /// Rows of logits wanted, of the last so many tokens: those for `targets`, then those to choose from.
    pub fn logits(&self) -> usize {
        self.targets.len() + if self.sample { 1 + self.guesses } else { 0 }
    }

    /// Chooses from one row after the other as long as the guesses are right, so that guessing changes no token: each is
    /// chosen from the logits, and with the state, that it would have been chosen with one at a time.
    ///
    /// `choose` is told the row among the work's own and gives the token, and whether it fulfils the constraint.
    ///
    /// # Errors
    /// That of `choose`.
    pub fn choose(
        &mut self,
        mut choose: impl FnMut(usize, &mut S) -> Result<(Token, bool), Failure>,
    ) -> Result<(Vec<Token>, bool), Failure> {
        let mut chosen = Vec::new();
        if !self.sample {
            return Ok((chosen, false));
        }
        let guesses = &self.tokens[self.tokens.len() - self.guesses..];
        for step in 0..=self.guesses {
            let (token, complete) = choose(self.targets.len() + step, self.state)?;
            let id = token.id;
            chosen.push(token);
            if complete {
                return Ok((chosen, true));
            }
            if guesses.get(step) != Some(&id) || self.ends.contains(&id) {
                break;
            }
        }
        Ok((chosen, false))
    }
}
