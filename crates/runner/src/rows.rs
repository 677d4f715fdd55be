//! What comes to the host of a batch's logits.

use crate::sampling::SamplerState;
use keyfold_engine::{Failure, Work};
use keyfold_ops::sample::{self, Choice, Choices, SampleError};
use keyfold_tensor::{Arena, Tensor};

/// A row of logits, `[vocabulary]`, or what was drawn from it.
#[derive(Clone, Copy)]
pub(crate) enum Row<'a> {
    Logits(&'a [f32]),
    Drawn(Result<u32, SampleError>),
}

impl<'a> Row<'a> {
    /// The logits of a row that is looked at.
    pub(crate) fn logits(self) -> Result<&'a [f32], Failure> {
        match self {
            Self::Logits(logits) => Ok(logits),
            Self::Drawn(_) => Err(Failure("logits that nobody asked for".to_owned())),
        }
    }
}

/// All rows of a batch.
pub(crate) struct Rows {
    /// The rows of logits that came, one behind the other.
    values: Vec<f32>,
    vocabulary: usize,
    /// For each row what was drawn from it, or else which of the rows that came it is.
    all: Vec<Result<Result<u32, SampleError>, usize>>,
}

impl Rows {
    /// The rows of `batch`, in order. Where the device draws tokens by itself, it does so for all that logits and random
    /// numbers are enough for.
    ///
    /// # Shapes
    /// - logits: `[rows that the works of batch want, vocabulary]`
    pub(crate) fn new(logits: &Tensor, batch: &[Work<'_, SamplerState>], arena: &Arena) -> Self {
        let vocabulary = logits.cols();
        let mut choices: Vec<Option<Choice>> = vec![None; logits.rows()];
        if sample::draws_itself(logits.device(), vocabulary) {
            let choice = |work: &Work<'_, SamplerState>, row: usize| {
                row.checked_sub(work.targets.len()).and_then(|ahead| work.state.choice(ahead))
            };
            let wanted = batch.iter().flat_map(|work| (0..work.logits()).map(move |row| choice(work, row)));
            choices = wanted.collect();
        }
        let drawn = match choices.iter().any(Option::is_some) {
            true => draw(logits, &choices, arena),
            false => Vec::new(),
        };
        let mut rows = Self { values: Vec::new(), vocabulary, all: Vec::with_capacity(choices.len()) };
        // Neighbours come together.
        for run in choices.chunk_by(|a, b| a.is_some() == b.is_some()) {
            let range = rows.all.len()..rows.all.len() + run.len();
            match drawn.get(range.clone()).filter(|_| run[0].is_some()) {
                Some(drawn) => rows.all.extend(drawn.iter().copied().map(Ok)),
                None => {
                    let came = rows.values.len() / vocabulary.max(1);
                    rows.all.extend((came..came + run.len()).map(Err));
                    let mut values = logits.row_range(range.start, run.len()).to_vec();
                    if rows.values.is_empty() {
                        rows.values = values;
                    } else {
                        rows.values.append(&mut values);
                    }
                }
            }
        }
        rows
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        let row = |row: &Result<_, usize>| match row {
            Ok(drawn) => Row::Drawn(*drawn),
            Err(came) => Row::Logits(&self.values[came * self.vocabulary..][..self.vocabulary]),
        };
        self.all.iter().map(row)
    }
}

/// What the device draws; nothing if a choice is not valid, which its request then learns from the host.
fn draw(logits: &Tensor, choices: &[Option<Choice>], arena: &Arena) -> Vec<Result<u32, SampleError>> {
    match Choices::new(arena, logits.cols(), choices.to_vec()) {
        Ok(mut choices) => {
            sample::draw(logits, &mut choices, None, None);
            choices.read()
        }
        Err(_) => Vec::new(),
    }
}
