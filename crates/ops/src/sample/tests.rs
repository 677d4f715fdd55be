use super::*;
use crate::{selftest::logits_of_kind, simd::on_every_isa, testing::random};

const SAMPLERS: [Sampler; 8] = [
    Sampler { temperature: 1.0, top_k: None, top_p: 1.0, min_p: 0.0 },
    Sampler { temperature: 0.3, top_k: None, top_p: 1.0, min_p: 0.0 },
    Sampler { temperature: 2.0, top_k: Some(3), top_p: 1.0, min_p: 0.0 },
    Sampler { temperature: 1.0, top_k: None, top_p: 0.6, min_p: 0.0 },
    Sampler { temperature: 1.0, top_k: None, top_p: 1.0, min_p: 0.3 },
    Sampler { temperature: 0.9, top_k: Some(5), top_p: 0.8, min_p: 0.1 },
    Sampler { temperature: 1.0, top_k: Some(1), top_p: 1.0, min_p: 0.0 },
    Sampler { temperature: 1.0, top_k: Some(1000), top_p: 1e-9, min_p: 0.0 },
];

fn logits(len: usize) -> Vec<f32> {
    random(5, len).iter().map(|x| 4.0 * x).collect()
}

#[test]
fn frequencies_follow_the_filtered_distribution() {
    const DRAWS: usize = 40_000;
    on_every_isa(|| {
        let logits = logits(19);
        for sampler in SAMPLERS {
            let want = reference::probabilities(&sampler, &logits);
            let mut counts = vec![0usize; logits.len()];
            let mut rng = Rng::new(1);
            for _ in 0..DRAWS {
                counts[sampler.sample(&logits, &mut rng).expect("a token") as usize] += 1;
            }
            for (token, (count, want)) in counts.iter().zip(want).enumerate() {
                let got = *count as f64 / DRAWS as f64;
                // Five standard deviations, and nothing at all of what is filtered out.
                let tolerance = 5.0 * (want * (1.0 - want) / DRAWS as f64).sqrt();
                assert!((got - want).abs() <= tolerance, "{sampler:?}: token {token} {got}, want {want}");
            }
        }
    });
}

#[test]
fn every_token_that_may_come_comes_in_its_turn() {
    let logits = logits(1000);
    for sampler in SAMPLERS {
        let want = reference::probabilities(&sampler, &logits);
        let mut rng = Rng::new(2);
        for _ in 0..200 {
            let token = sampler.sample(&logits, &mut rng).expect("a token");
            assert!(want[token as usize] > 0.0, "{sampler:?} drew {token}");
        }
    }
}

#[test]
fn top_p_takes_the_smallest_set() {
    // Probabilities 0.5, 0.25, 0.125, 0.125.
    let logits = [0.5f32, 0.25, 0.125, 0.125].map(f32::ln);
    let tokens = |top_p: f32| {
        let sampler = Sampler { top_p, ..Sampler::default() };
        let mut rng = Rng::new(3);
        let mut seen: Vec<u32> =
            (0..2000).map(|_| sampler.sample(&logits, &mut rng).expect("a token")).collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    };
    assert_eq!(tokens(0.4), [0]);
    assert_eq!(tokens(0.51), [0, 1]);
    assert_eq!(tokens(0.8), [0, 1, 2], "of equal ones the first");
    assert_eq!(tokens(0.9), [0, 1, 2, 3]);
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    let mut rng = Rng::new(4);
    assert_eq!(Sampler::greedy().sample(&[0.0, 2.0, 2.0, 1.0], &mut rng), Ok(1));
    assert_eq!(rng, Rng::new(4), "no random number is used");
    // The coldest temperature above 0 agrees.
    let cold = Sampler { temperature: f32::from_bits(1), ..Sampler::default() };
    assert_eq!(cold.sample(&[0.0, 2.0, 1.5], &mut rng), Ok(1));
}

#[test]
fn same_seed_same_tokens_and_the_state_goes_on() {
    let (logits, sampler) = (logits(300), SAMPLERS[5]);
    let mut rng = Rng::new(6);
    let draw = |rng: &mut Rng| sampler.sample(&logits, rng).expect("a token");
    for _ in 0..10 {
        draw(&mut rng);
    }
    let mut copy = Rng::from_state(rng.state());
    let (a, b): (Vec<_>, Vec<_>) = (0..50).map(|_| (draw(&mut rng), draw(&mut copy))).unzip();
    assert_eq!(a, b);
    assert!(a.iter().any(|token| *token != a[0]));
}

#[test]
fn random_numbers_are_known() {
    // The published sequence of SplitMix64 for the seed 1234567.
    let mut rng = Rng::from_state(1_234_567);
    assert_eq!([rng.next_u64(), rng.next_u64()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    let mean: f64 = (0..10_000).map(|_| rng.uniform()).sum::<f64>() / 10_000.0;
    assert!((mean - 0.5).abs() < 0.02);
}

#[test]
fn impossible_requests_are_errors() {
    let mut rng = Rng::new(7);
    let mut sample = |sampler: Sampler, logits: &[f32]| sampler.sample(logits, &mut rng);
    let any = Sampler::default();
    assert!(matches!(sample(any, &[0.0, f32::NAN]), Err(SampleError::Logit { token: 1, .. })));
    assert!(matches!(sample(Sampler::greedy(), &[f32::NAN]), Err(SampleError::Logit { token: 0, .. })));
    assert!(matches!(sample(any, &[f32::INFINITY]), Err(SampleError::Logit { token: 0, .. })));
    assert_eq!(sample(any, &[]), Err(SampleError::NoToken));
    assert_eq!(sample(any, &[f32::NEG_INFINITY; 3]), Err(SampleError::NoToken));
    assert_eq!(sample(any, &[f32::NEG_INFINITY, 0.0]), Ok(1));
    for temperature in [-1.0, f32::INFINITY, f32::NAN] {
        let error = sample(Sampler { temperature, ..any }, &[0.0]);
        assert!(matches!(error, Err(SampleError::Temperature(_))));
    }
    for top_p in [0.0, 1.5, f32::NAN] {
        assert!(matches!(sample(Sampler { top_p, ..any }, &[0.0]), Err(SampleError::TopP(_))));
    }
    assert!(matches!(sample(Sampler { min_p: -0.1, ..any }, &[0.0]), Err(SampleError::MinP(_))));
    assert_eq!(sample(Sampler { top_k: Some(0), ..any }, &[0.0]), Err(SampleError::TopK));
    let message = SampleError::Logit { token: 3, value: f32::NAN }.to_string();
    assert_eq!(message, "the logit of token 3 is NaN: cannot sample");
}

#[test]
fn repetition_is_penalised_as_transformers_does() {
    // What RepetitionPenaltyLogitsProcessor of transformers 5.23.0 makes of these logits.
    let logits = [1.5, -0.75, 0.0, 2.25, -3.0, 0.125, 1.0];
    let cases: [(f32, &[u32], [f32; 7]); 3] = [
        (1.3, &[3, 1, 3, 2], [1.5, -0.974_999_96, 0.0, 1.730_769_3, -3.0, 0.125, 1.0]),
        (0.8, &[0, 4], [1.875, -0.75, 0.0, 2.25, -2.4, 0.125, 1.0]),
        (1.0, &[0, 1, 2, 3], logits),
    ];
    for (penalty, tokens, want) in cases {
        let mut repetition = Repetition::new(penalty).expect("in range");
        let (first, rest) = tokens.split_at(1);
        repetition.see(first);
        repetition.see(rest);
        let mut changed = logits;
        repetition.apply(&mut changed);
        assert_eq!(changed, want, "{penalty}");
        assert_eq!(repetition.is_off(), penalty == 1.0);
    }
    // Tokens at the ends of words of bits; what is ruled out stays so, and one beyond the logits is nobody.
    let mut repetition = Repetition::new(2.0).expect("in range");
    repetition.see(&[63, 64, 127, 128, 1000]);
    let mut row = vec![1.0f32; 129];
    row[127] = f32::NEG_INFINITY;
    repetition.apply(&mut row);
    let changed: Vec<usize> = (0..row.len()).filter(|i| row[*i] != 1.0).collect();
    assert_eq!(changed, [63, 64, 127, 128]);
    assert_eq!((row[64], row[127]), (0.5, f32::NEG_INFINITY));
    for penalty in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-30] {
        assert!(matches!(Repetition::new(penalty), Err(SampleError::RepetitionPenalty(_))), "{penalty}");
    }
    let message = SampleError::RepetitionPenalty(0.0).to_string();
    assert_eq!(message, "repetition_penalty is 0: expected a number from 0.01 to 100");
}

#[test]
fn what_the_kernel_does_draws_the_same_tokens() {
    let (mut different, mut all) = (0, 0);
    let mut numbers = Rng::new(11);
    let mut pick = |count: usize| (numbers.next_u64() % count as u64) as usize;
    for case in 0..4000 {
        let len = [1, 3, 97, 1000, 5000][pick(5)];
        let logits = logits_of_kind(pick(7), case + 1, len);
        let sampler = Sampler {
            temperature: [0.3, 0.7, 1.0, 2.0, 1e-30][pick(5)],
            top_k: [None, None, Some(1), Some(2), Some(20), Some(900)][pick(6)],
            top_p: [1.0, 1.0, 0.95, 0.5, 1e-9, 0.9999][pick(6)],
            min_p: [0.0, 0.0, 0.05, 0.3, 1.0, 1e-40][pick(6)],
        };
        let Ok(best) = likeliest(&logits) else { continue };
        let (mut weights, mut rng) = (Vec::new(), Rng::new(case));
        cpu::weigh(&sampler, &logits, logits[best], &mut weights);
        let got = twin::draw(&sampler, &weights, rng.clone().uniform());
        let want = sampler.sample(&logits, &mut rng).expect("a token");
        different += usize::from(got != want);
        all += 1;
        // Where nothing is added up they are the same always.
        if sampler.top_k == Some(1) || sampler.top_p == 1e-9 || sampler.min_p == 1.0 && best == want as usize
        {
            assert_eq!(got, want, "{sampler:?}");
        }
    }
    assert!(all > 3000 && different * 1000 <= all, "{different} of {all} differ");
}

#[test]
fn each_row_chooses_as_its_sampler_does() {
    let arena = keyfold_tensor::Arena::new();
    let rows = [
        logits_of_kind(1, 1, 40),
        logits_of_kind(6, 2, 40),
        vec![f32::NEG_INFINITY; 40],
        logits_of_kind(0, 3, 40),
    ];
    let mut logits = rows.concat();
    logits[2 * 40 + 7] = f32::NAN;
    let logits = arena.tensor_of(4, 40, &logits);
    let mut repetition = Repetition::new(3.0).expect("in range");
    repetition.see(&[5, 33, 39]);
    let choice =
        |sampler: Sampler, seed: u64| Choice { sampler, rng: Rng::new(seed), repetition: repetition.clone() };
    let wishes = [Some(Choice::greedy()), Some(choice(SAMPLERS[5], 9)), Some(choice(SAMPLERS[0], 3)), None];
    let mut choices = Choices::new(&arena, 40, wishes.to_vec()).expect("in range");
    let mut ids = crate::indices::Indices::new(&arena, vec![9; 4]);
    let mut own = wishes;
    for _ in 0..5 {
        draw(&logits, &mut choices, Some(&mut ids), None);
        let got = choices.read();
        for row in 0..2 {
            let want = own[row].as_mut().expect("a choice").choose(&mut rows[row].clone());
            assert_eq!(got[row], want);
            assert_eq!(Ok(ids.values()[row]), want);
        }
        assert!(
            matches!(got[2], Err(SampleError::Logit { token: 7, value }) if value.is_nan()),
            "{:?}",
            got[2]
        );
        assert_eq!(ids.values()[2..], [0, 0]);
    }
    let mut elsewhere = choice(SAMPLERS[0], 4);
    let mut here = elsewhere.clone();
    let token = here.choose(&mut rows[1].clone()).expect("a token");
    elsewhere.chosen(token);
    assert_eq!(elsewhere.choose(&mut rows[1].clone()), here.choose(&mut rows[1].clone()));
    let wrong = Choice { sampler: Sampler { top_p: 0.0, ..Sampler::default() }, ..Choice::greedy() };
    assert!(choices.update(vec![Some(wrong), None, None, None]).is_err());
    assert!(!draws_itself(keyfold_tensor::Device::Cpu, 40));
}

#[test]
fn outcomes_tell_of_tokens_and_errors() {
    let all =
        [Ok(7), Err(SampleError::Logit { token: 3, value: f32::INFINITY }), Err(SampleError::NoToken), Ok(0)];
    let words: Vec<u32> = all.iter().flat_map(|chosen| choices::outcome(*chosen)).collect();
    assert_eq!(outcomes(&words), all);
}

#[test]
fn the_likeliest_of_each_row_is_the_first_of_equals() {
    let arena = keyfold_tensor::Arena::new();
    let (low, nan) = (f32::NEG_INFINITY, f32::NAN);
    let rows = [[0.0, 3.0, 3.0, -1.0], [low, low, low, low], [nan, -5.0, -4.0, -4.0], [-2.0, -1.0, low, 7.0]];
    let logits = arena.tensor_of(4, 4, rows.as_flattened());
    assert_eq!(likeliest_rows(&logits), [1, 0, 2, 3]);
}
