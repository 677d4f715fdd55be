//! How each row of logits chooses its token, where the logits lie.

use super::{Repetition, Rng, SampleError, Sampler};
use crate::indices::Indices;
use keyfold_core::DType;
use keyfold_tensor::{Arena, Device, Tensor};

/// Words of `Wishes` in `kernel.cu`.
const WORDS: usize = 10;
/// Words of a row's outcome in a mailbox.
pub const OUTCOME: usize = 2;

/// How the tokens of one sequence are chosen.
#[derive(Clone, Debug)]
pub struct Choice {
    /// Temperature and filters.
    pub sampler: Sampler,
    /// The random numbers that come next.
    pub rng: Rng,
    /// Penalty of the tokens that came before.
    pub repetition: Repetition,
}

impl Choice {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Self { sampler: Sampler::greedy(), rng: Rng::new(0), repetition: Repetition::off() }
    }

    /// A token from `logits`, which the next one takes into account.
    ///
    /// # Shapes
    /// - logits: `[vocabulary]`, changed by the penalty
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn choose(&mut self, logits: &mut [f32]) -> Result<u32, SampleError> {
        self.repetition.apply(logits);
        let token = self.sampler.sample(logits, &mut self.rng)?;
        self.repetition.see(&[token]);
        Ok(token)
    }

    /// A token was chosen elsewhere, from the same logits with the same numbers.
    pub fn chosen(&mut self, token: u32) {
        if self.sampler.takes_number() {
            self.rng.next_u64();
        }
        self.repetition.see(&[token]);
    }
}

/// The choices of all rows of logits for [`draw`](super::draw). On a GPU they lie there in one place, and move on from token
/// to token: what the host knows of them is then what it said last.
pub struct Choices {
    vocabulary: usize,
    arena: Arena,
    pub(super) rows: Vec<Option<Choice>>,
    /// On a GPU: [`WORDS`] for each row.
    pub(super) placed: Option<Tensor>,
    /// On a GPU, where a row has a penalty: the bits of the tokens that came, row behind row.
    seen: Option<Tensor>,
    pub(super) outcomes: Indices,
}

impl Choices {
    /// The choices of as many rows of logits over `vocabulary` tokens of `arena`'s device; none where a row needs no token.
    ///
    /// # Errors
    /// Names the first number that is out of range.
    pub fn new(arena: &Arena, vocabulary: usize, rows: Vec<Option<Choice>>) -> Result<Self, SampleError> {
        let count = rows.len();
        let placed = match arena.device() {
            Device::Cpu => None,
            Device::Cuda(_) => Some(arena.tensor(1, (WORDS * count).max(1), DType::F32)),
        };
        let outcomes = Indices::new(arena, vec![0; OUTCOME * count]);
        let mut choices =
            Self { vocabulary, arena: arena.clone(), rows: vec![None; count], placed, seen: None, outcomes };
        choices.update(rows)?;
        Ok(choices)
    }

    /// Other choices, as many as before.
    ///
    /// # Errors
    /// Names the first number that is out of range; then all stays as it was.
    ///
    /// # Panics
    /// When their number differs.
    pub fn update(&mut self, rows: Vec<Option<Choice>>) -> Result<(), SampleError> {
        assert_eq!(rows.len(), self.rows.len(), "sample: choices for as many rows");
        rows.iter().flatten().try_for_each(|choice| choice.sampler.validate())?;
        self.rows = rows;
        self.place();
        Ok(())
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The tokens that [`draw`](super::draw) chose last; waits for it.
    pub fn read(&mut self) -> Vec<Result<u32, SampleError>> {
        outcomes(self.outcomes.read())
    }

    fn place(&mut self) {
        let Some(placed) = &mut self.placed else { return };
        let penalised = |row: &Option<Choice>| row.as_ref().is_some_and(|row| !row.repetition.is_off());
        let each = self.vocabulary.div_ceil(32);
        self.seen = self.rows.iter().any(penalised).then(|| {
            let rows = self.rows.iter().filter(|row| penalised(row)).flatten();
            let words: Vec<u32> = rows.flat_map(|row| row.repetition.words(self.vocabulary)).collect();
            let mut seen = self.arena.tensor(1, words.len().max(1), DType::F32);
            seen.write_bytes(&bytes(&words));
            seen
        });
        let mut next = self.seen.as_ref().map_or(0, Tensor::address);
        let words: Vec<u32> = self
            .rows
            .iter()
            .flat_map(|row| {
                let mut seen = 0;
                if penalised(row) {
                    seen = next;
                    next += 4 * each as u64;
                }
                wishes(row.as_ref(), seen)
            })
            .collect();
        if !words.is_empty() {
            placed.write_bytes(&bytes(&words));
        }
    }
}

/// `Wishes` of `kernel.cu`, with the address of the tokens that came.
fn wishes(row: Option<&Choice>, seen: u64) -> [u32; WORDS] {
    let halves = |word: u64| [word as u32, (word >> 32) as u32];
    let Some(Choice { sampler, rng, repetition }) = row else {
        let mut none = [0; WORDS];
        none[0] = f32::NAN.to_bits();
        return none;
    };
    // More than there are tokens keeps all.
    let top_k = sampler.top_k.map_or(0, |k| u32::try_from(k).unwrap_or(u32::MAX));
    let [random, seen] = [rng.state(), seen].map(halves);
    [
        sampler.temperature.to_bits(),
        top_k,
        sampler.top_p.to_bits(),
        sampler.min_p.abs().to_bits(),
        repetition.penalty().to_bits(),
        0,
        random[0],
        random[1],
        seen[0],
        seen[1],
    ]
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Two words that say what became of a row: a token and 0; the first token whose logit is no number, with the bits of that
/// logit; or the largest word and 0 where no token may come.
pub(super) fn outcome(chosen: Result<u32, SampleError>) -> [u32; OUTCOME] {
    match chosen {
        Ok(token) => [token, 0],
        Err(SampleError::Logit { token, value }) => [token as u32, value.to_bits()],
        Err(_) => [u32::MAX, 0],
    }
}

/// What became of the rows whose outcomes [`draw`](super::draw) has written.
pub fn outcomes(words: &[u32]) -> Vec<Result<u32, SampleError>> {
    let read = |words: &[u32]| match *words {
        [u32::MAX, 0] => Err(SampleError::NoToken),
        [token, 0] => Ok(token),
        [token, bits] => Err(SampleError::Logit { token: token as usize, value: f32::from_bits(bits) }),
        _ => Err(SampleError::NoToken),
    };
    words.chunks_exact(OUTCOME).map(read).collect()
}
