//! Tokens that a device draws against those that the host draws from the same logits with the same numbers.

use super::twin::{Gaps, Twins, random};
use crate::{
    indices::Indices,
    sample::{Choice, Choices, Repetition, Rng, SampleError, Sampler, draw},
};
use keyfold_core::DType;

/// Share of the tokens that may differ where weights are added up: sums have another order.
const LIMIT: f64 = 1e-3;
/// Rows and vocabularies: every shape of a launch, slices of all lengths.
const SIZES: [(usize, usize); 9] =
    [(3, 1), (3, 5), (30, 97), (70, 300), (300, 4099), (70, 32_000), (3, 65_536), (30, 65_536), (5, 151_936)];

/// Logits near one another and far apart, on a grid, mostly ruled out, all equal, one alone.
pub(crate) fn logits_of_kind(kind: usize, seed: u64, len: usize) -> Vec<f32> {
    let [a, b] = [seed, seed + 1000].map(|seed| random(seed, len));
    let value = |at: usize| {
        let x = a[at] + b[at];
        match kind {
            0 => 0.3 * x,
            1 => 8.0 * x,
            2 => (4.0 * x).round() / 2.0,
            3 if !at.is_multiple_of(4) => f32::NEG_INFINITY,
            4 => 1.5,
            5 if at != len / 3 => f32::NEG_INFINITY,
            _ => 3.0 * x,
        }
    };
    (0..len).map(value).collect()
}

/// A choice, and whether nothing is added up for it.
fn choice(pick: &mut impl FnMut(usize) -> usize, vocabulary: usize) -> Option<(Choice, bool)> {
    let sampler = Sampler {
        temperature: [0.0, 0.3, 0.7, 1.0, 2.0, 1e-30][pick(6)],
        top_k: [None, None, Some(1), Some(2), Some(40), Some(1000)][pick(6)],
        top_p: [1.0, 1.0, 0.95, 0.5, 1e-9, 0.9999][pick(6)],
        min_p: [0.0, 0.0, 0.05, 0.3, 1e-6, 1e-40][pick(6)],
    };
    let mut repetition = Repetition::new([1.0, 1.0, 1.3, 0.7][pick(4)]).ok()?;
    let came: Vec<u32> = (0..20).map(|_| pick(vocabulary) as u32).collect();
    repetition.see(&came);
    let exact = sampler.temperature == 0.0 || sampler.top_k == Some(1) || sampler.top_p == 1e-9;
    Some((Choice { sampler, rng: Rng::new(pick(1 << 30) as u64), repetition }, exact))
}

pub(super) fn sample(twins: &mut Twins<'_>) {
    let mut numbers = Rng::new(5);
    let mut pick = |count: usize| (numbers.next_u64() % count.max(1) as u64) as usize;
    let few = [(3, 5), (3, 4099)];
    for &(rows, vocabulary) in if twins.small() { &few[..] } else { &SIZES } {
        let size = format!("{rows} x {vocabulary}");
        let mut values: Vec<Vec<f32>> =
            (0..rows).map(|row| logits_of_kind(pick(7), (row * 7 + vocabulary) as u64, vocabulary)).collect();
        values[0].fill(f32::NEG_INFINITY);
        values[1][vocabulary / 2] = f32::NAN;
        values[2][vocabulary - 1] = f32::INFINITY;
        let twin = twins.of(rows, vocabulary, DType::F32, Gaps::Odd, &values.concat());
        let wishes: Vec<Option<(Choice, bool)>> =
            (0..rows).map(|row| if row % 8 == 7 { None } else { choice(&mut pick, vocabulary) }).collect();
        let mut own: Vec<Option<Choice>> =
            wishes.iter().map(|wish| wish.as_ref().map(|wish| wish.0.clone())).collect();
        let Ok(mut choices) = Choices::new(twins.device(), vocabulary, own.clone()) else {
            twins.compare_values(format!("choices, {size}"), &[0.0], &[1.0], 0.0);
            continue;
        };
        let mut ids = Indices::new(twins.device(), vec![9; rows]);
        // Equal tokens and all of them: those that must be equal, and the others.
        let mut equal = [[0.0f32; 2]; 2];
        for _ in 0..4 {
            draw(&twin.device, &mut choices, Some(&mut ids), None);
            let (got, ids) = (choices.read(), ids.read());
            for (row, wish) in wishes.iter().enumerate() {
                let Some((choice, (_, exact))) = own[row].as_mut().zip(wish.as_ref()) else { continue };
                let before = choice.clone();
                let want = choice.choose(&mut values[row].clone());
                let same = match (got[row], want) {
                    (
                        Err(SampleError::Logit { token: a, value: x }),
                        Err(SampleError::Logit { token: b, value: y }),
                    ) => a == b && x.is_nan() == y.is_nan(),
                    (got, want) => got == want,
                };
                let same = same && ids[row] == got[row].unwrap_or(0);
                if let (Ok(token), false) = (got[row], same) {
                    // The device goes on from its own token.
                    *choice = before;
                    choice.chosen(token);
                }
                let counts = &mut equal[usize::from(!exact && want.is_ok())];
                counts[0] += f32::from(u8::from(same));
                counts[1] += 1.0;
            }
        }
        let [sure, drawn] = equal;
        twins.compare_values(format!("tokens that need no sum, {size}"), &sure[..1], &sure[1..], 0.0);
        twins.compare_values(format!("tokens, {size}"), &drawn[..1], &drawn[1..], LIMIT);
    }
    if !twins.small() {
        frequencies(twins);
    }
}

/// How often tokens come in many draws, against the share of the kept weights that is theirs.
fn frequencies(twins: &mut Twins<'_>) {
    const DRAWS: usize = 4096;
    let row = logits_of_kind(6, 3, 19);
    let values = row.repeat(DRAWS);
    let twin = twins.of(DRAWS, row.len(), DType::F32, Gaps::None, &values);
    for (top_k, top_p) in [(None, 1.0), (Some(6), 1.0), (None, 0.8)] {
        let sampler = Sampler { top_k, top_p, ..Sampler::default() };
        let one = |seed| Some(Choice { sampler, rng: Rng::new(seed), ..Choice::greedy() });
        let wishes: Vec<_> = (0..DRAWS as u64).map(one).collect();
        let Ok(mut choices) = Choices::new(twins.device(), row.len(), wishes.clone()) else {
            twins.compare_values(format!("choices, top_k {top_k:?}"), &[0.0], &[1.0], 0.0);
            continue;
        };
        draw(&twin.device, &mut choices, None, None);
        let mut counts = [vec![0.0f32; row.len()], vec![0.0f32; row.len()]];
        for (drawn, wish) in choices.read().into_iter().zip(wishes) {
            let host = wish.map(|mut choice| choice.choose(&mut row.clone()));
            for (counts, token) in counts.iter_mut().zip([Some(drawn), host]) {
                if let Some(Ok(token)) = token {
                    counts[token as usize] += 1.0;
                }
            }
        }
        twins.compare_values(
            format!("frequencies, top_k {top_k:?}, top_p {top_p}"),
            &counts[0],
            &counts[1],
            LIMIT,
        );
    }
}
