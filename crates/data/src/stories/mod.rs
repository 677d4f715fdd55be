//! `synthetic:stories`: short English stories whose later sentences can only be predicted by recalling
//! what earlier ones said.
//!
//! Every story has three people (in the large vocabulary sometimes four). Each has a trade and a name, a thing
//! with its adjective, and a place with a name of two words. A plot states what belongs to whom, lets a little
//! time pass, and then comes back to everybody in a random order. The words that come back are the *answers*:
//! they cannot be guessed from grammar or frequency (see [`Vocabulary`]), and guessing among the words of the
//! same kind in the same story is right once in three (four) times: [`Answer::candidates`]. A model that
//! reaches a high recall accuracy therefore reads its context; one that cannot stays at the guess.
//!
//! About two answers in three are *easy*: the second word of a pair that always stands together (`miller Ada`,
//! `red kite`, `Elm Bridge`), which is what followed the same word before. They make the first way of
//! recalling, attention to what came after an earlier occurrence, pay from the start. The others are the
//! first word of such a pair (whose thing, what thing, what place), which follow from what was told about
//! somebody; they keep telling models apart when the easy ones are learnt. An answer lies from a few words to
//! the length of the story behind.
//!
//! Story `i` of seed `s` is a pure function of `(s, i)`. The first 2^36 stories of a seed all differ in
//! their people and belongings: the index, permuted, is written into those choices as digits.
//! Training and validation use disjoint halves of that range.

mod plots;
mod rows;
mod template;
mod words;

pub use rows::StoryRows;

use crate::mix::{Permutation, SplitMix, mix2};
use plots::{ASIDES, INTRODUCTIONS, INTRODUCTIONS_AT_HOME, PLOTS, WEATHER};
use template::{Person, Writer};

/// Number of different stories of one seed.
pub const STORIES: u64 = 1 << 36;

/// Index of the first validation story; training uses those below.
pub const FIRST_VALIDATION_STORY: u64 = STORIES / 2;

/// Changes whenever a text may change, so that tokenizers trained on the stories are not mixed up.
pub const VERSION: u32 = 2;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerKind {
    /// Who.
    Name,
    /// Of what trade.
    Role,
    /// What it looks like.
    Adjective,
    /// What thing.
    Object,
    /// Where.
    Place,
}

/// A word that only recall can give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Byte offset of the word in the story.
    pub start: usize,
    /// Byte offset of its end.
    pub end: usize,
    /// What is asked for.
    pub kind: AnswerKind,
    /// Bytes since the story last used the word.
    pub distance: usize,
    /// How many words of this kind belong to the story's people: one in so many is the best guess
    /// without knowing who has what.
    pub candidates: usize,
}

/// One story.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Story {
    /// The text, without a newline at the end.
    pub text: String,
    /// The answers, in the order of the text.
    pub answers: Vec<Answer>,
}

/// How many different words there are to recall.
///
/// A model has to see a word often before it can copy it, so the number of words sets how much training the
/// task takes: small is for a first result on a CPU, large for runs of millions of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vocabulary {
    /// 8 names, trades, adjectives and things, 8 times 8 places; three people in each story.
    /// With the tokenizer `bpe:1024` each of the words is one token, and no two begin alike.
    Small,
    /// 100 names, 32 trades, 32 adjectives, 64 things, 30 times 40 places; a quarter of the stories have four people.
    Large,
}

impl Vocabulary {
    /// Names, trades, adjectives, things, first and second words of places.
    fn sizes(self) -> [usize; 6] {
        match self {
            Self::Small => [8; 6],
            Self::Large => [100, 32, 32, 64, 30, 40],
        }
    }

    /// Percentage of stories with four people instead of three. Every one more makes it harder to find out
    /// that there is something to copy at all, so that a small budget would be spent on guessing.
    fn fours(self) -> usize {
        match self {
            Self::Small => 0,
            Self::Large => 25,
        }
    }
}

/// Sentences of a story that come back to somebody. Each is one more chance to see the same words follow each
/// other, and those are what a model first learns recall from: with fewer sentences it takes longer to begin.
const RECALLS: usize = 15;

/// Writes stories.
#[derive(Debug, Clone)]
pub struct StoryGenerator {
    seed: u64,
    vocabulary: Vocabulary,
    order: Permutation,
}

impl StoryGenerator {
    /// The stories of a seed.
    pub fn new(seed: u64, vocabulary: Vocabulary) -> Self {
        Self { seed, vocabulary, order: Permutation::new(STORIES, mix2(seed, 0x5703_1e5f)) }
    }

    /// Story `index`, taken modulo [`STORIES`].
    pub fn story(&self, index: u64) -> Story {
        let digits = self.order.at(index % STORIES);
        let mut rng = SplitMix::new(mix2(self.seed, digits));
        let cast = cast(digits, self.vocabulary, &mut rng);
        let plot = &PLOTS[rng.below(PLOTS.len())];
        let mut w =
            Writer { cast: &cast, text: String::with_capacity(1200), answers: Vec::with_capacity(24) };
        let mut asides = ASIDES.to_vec();
        let mut distraction = |w: &mut Writer<'_>, rng: &mut SplitMix| distraction(w, &mut asides, rng);

        let town_start = pick(&words::TOWN_STARTS, &mut rng);
        let town_end = pick(&words::TOWN_ENDS, &mut rng);
        let time = pick(&words::TIMES, &mut rng);
        w.sentence(&format!("{time} in {town_start}{town_end}, this is what happened."), 0);
        let mut introductions = if plot.homes { INTRODUCTIONS_AT_HOME } else { INTRODUCTIONS }.to_vec();
        rng.shuffle_front(&mut introductions, cast.len());
        (0..cast.len()).for_each(|who| w.sentence(introductions[who], who));
        w.sentence(pick(plot.openings, &mut rng), 0);
        (0..cast.len()).for_each(|who| w.sentence(pick(plot.facts, &mut rng), who));
        distraction(&mut w, &mut rng);
        w.sentence(pick(plot.turns, &mut rng), 0);

        // Who comes back is drawn anew each time: if everybody had to take turns, the one who was missing
        // could be guessed. Nobody says the same thing again before having said all.
        let mut left: Vec<Vec<&str>> = vec![Vec::new(); cast.len()];
        for _ in 0..RECALLS {
            let who = rng.below(cast.len());
            if left[who].is_empty() {
                left[who] = plot.recalls.to_vec();
            }
            let variant = rng.below(left[who].len());
            let sentence = left[who].swap_remove(variant);
            w.sentence(sentence, who);
            if rng.below(30) == 0 {
                distraction(&mut w, &mut rng);
            }
        }
        let who = rng.below(cast.len());
        w.sentence(pick(plot.endings, &mut rng), who);
        Story { text: w.text, answers: w.answers }
    }
}

fn pick<T: Copy>(items: &[T], rng: &mut SplitMix) -> T {
    items[rng.below(items.len())]
}

/// A sentence that has nothing to do with the plot.
fn distraction(w: &mut Writer<'_>, asides: &mut Vec<&str>, rng: &mut SplitMix) {
    match rng.below(if asides.is_empty() { 2 } else { 4 }) {
        0 => w.sentence(pick(WEATHER, rng), 0),
        1 => {
            let (animal, act) = (pick(&words::ANIMALS, rng), pick(&words::ANIMAL_ACTS, rng));
            let article = if animal.starts_with(['a', 'e', 'i', 'o', 'u']) { "An" } else { "A" };
            w.sentence(&format!("{article} {animal} {act}."), 0);
        }
        _ => {
            let who = rng.below(w.cast.len());
            let aside = asides.swap_remove(rng.below(asides.len()));
            w.sentence(aside, who);
        }
    }
}

/// Makes the people of a story. The first three names, trades, adjectives, things and first words of places are
/// digits of the story's number; the rest is drawn.
fn cast(mut digits: u64, vocabulary: Vocabulary, rng: &mut SplitMix) -> Vec<Person> {
    let [mut names, mut roles, mut adjectives, mut objects, mut lands, mut places] =
        vocabulary.sizes().map(|n| (0..n).collect::<Vec<usize>>());
    let mut taken = 0;
    let mut take = |pool: &mut Vec<usize>| {
        // The last digits do not reach their full range. Turning each by a mix of those before keeps the
        // digits apart and makes every word equally frequent, so that none is a good guess.
        let turn = (mix2(taken, pool.len() as u64) % pool.len() as u64) as usize;
        let digit = (digits % pool.len() as u64) as usize;
        digits /= pool.len() as u64;
        taken = mix2(taken, digit as u64);
        pool.swap_remove((digit + turn) % pool.len())
    };
    let mut drawn_names = [0; 3].map(|_| take(&mut names)).to_vec();
    let mut drawn_adjectives = [0; 3].map(|_| take(&mut adjectives)).to_vec();
    let mut drawn_objects = [0; 3].map(|_| take(&mut objects)).to_vec();
    let mut drawn_roles = [0; 3].map(|_| take(&mut roles)).to_vec();
    let mut drawn_lands = [0; 3].map(|_| take(&mut lands)).to_vec();
    let mut drawn_places = Vec::new();
    let size = if rng.below(100) < vocabulary.fours() { 4 } else { 3 };
    for (pool, drawn) in [
        (&mut names, &mut drawn_names),
        (&mut roles, &mut drawn_roles),
        (&mut adjectives, &mut drawn_adjectives),
        (&mut objects, &mut drawn_objects),
        (&mut places, &mut drawn_places),
        (&mut lands, &mut drawn_lands),
    ] {
        while drawn.len() < size {
            let at = rng.below(pool.len());
            drawn.push(pool.swap_remove(at));
        }
    }
    (0..size)
        .map(|i| {
            let she = drawn_names[i] % 2 == 0;
            let names = if she { &words::SHE } else { &words::HE };
            Person {
                name: names[drawn_names[i] / 2],
                role: words::ROLES[drawn_roles[i]],
                adjective: words::ADJECTIVES[drawn_adjectives[i]],
                object: words::OBJECTS[drawn_objects[i]],
                land: words::LANDS[drawn_lands[i]],
                place: words::PLACES[drawn_places[i]],
            }
        })
        .collect()
}

#[cfg(test)]
mod tests;
