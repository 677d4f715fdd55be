use super::*;

fn state(change: impl FnOnce(&mut Sampling)) -> SamplerState {
    let mut sampling = Sampling::greedy();
    change(&mut sampling);
    SamplerState::new(&[], &sampling, None)
}

fn chosen(state: &mut SamplerState, logits: &[f32], count: usize) -> Vec<u32> {
    (0..count).map(|_| state.choose(logits).expect("a token").0.id).collect()
}

#[test]
fn without_wishes_the_sampler_decides() {
    let logits: Vec<f32> = (0..50).map(|i| ((i * 37) % 50) as f32 / 10.0).collect();
    let mut state =
        state(|sampling| (sampling.temperature, sampling.seed, sampling.top_k) = (0.9, 7, Some(20)));
    let sampler = Sampler { temperature: 0.9, top_k: Some(20), top_p: 1.0, min_p: 0.0 };
    let mut rng = Rng::new(7);
    let want: Vec<u32> = (0..40).map(|_| sampler.sample(&logits, &mut rng).expect("a token")).collect();
    assert_eq!(chosen(&mut state, &logits, 40), want);
}

#[test]
fn penalties_push_down_what_was_made() {
    let logits = [0.0, 1.0, 0.9, 0.85];
    let mut once = state(|sampling| sampling.presence_penalty = 0.12);
    assert_eq!(chosen(&mut once, &logits, 4), [1, 2, 1, 1], "it counts once");
    let mut each = state(|sampling| sampling.frequency_penalty = 0.12);
    assert_eq!(chosen(&mut each, &logits, 5), [1, 2, 1, 3, 2], "it counts each time");
    let mut liked = state(|sampling| sampling.frequency_penalty = -0.5);
    assert_eq!(chosen(&mut liked, &logits, 3), [1, 1, 1]);
}

#[test]
fn biases_move_single_tokens() {
    let logits = [0.0, 1.0, 2.0];
    assert_eq!(chosen(&mut state(|s| s.logit_bias = vec![(0, 5.0)]), &logits, 1), [0]);
    assert_eq!(chosen(&mut state(|s| s.logit_bias = vec![(2, -100.0), (9, 100.0)]), &logits, 1), [1]);
}

#[test]
fn log_probabilities_are_the_models_own() {
    let logits = [0.1f32, 0.2, 0.4, 0.3].map(f32::ln);
    let mut state = state(|sampling| {
        (sampling.logprobs, sampling.logit_bias) = (Some(2), vec![(0, 50.0)]);
    });
    let (token, _) = state.choose(&logits).expect("a token");
    let logprobs = token.logprobs.expect("wanted");
    assert_eq!(token.id, 0);
    assert!((logprobs.token - 0.1f32.ln()).abs() < 1e-6);
    assert_eq!(logprobs.top.iter().map(|(id, _)| *id).collect::<Vec<u32>>(), [2, 3]);
    assert!((logprobs.top[0].1 - 0.4f32.ln()).abs() < 1e-6);
    assert_eq!(super::logprobs(&logits, 2, 1).top, [(2, super::logprobs(&logits, 2, 0).token)]);
    assert_eq!(super::logprobs(&logits, 1, 99).top.len(), 4);
    assert_eq!(super::logprobs(&[1.0, 1.0, 0.0], 1, 1).top[0].0, 0, "of equal ones the first");
    assert_eq!(super::logprobs(&[0.0, f32::NEG_INFINITY], 1, 0).token, f32::MIN, "still a number");
}

#[test]
fn tokens_chosen_elsewhere_are_those_chosen_here() {
    let logits: Vec<f32> = (0..50).map(|i| ((i * 37) % 50) as f32 / 10.0).collect();
    for (penalty, temperature) in [(1.0, 0.9), (1.6, 0.9), (1.6, 0.0)] {
        let wish =
            |s: &mut Sampling| (s.temperature, s.seed, s.repetition_penalty) = (temperature, 3, penalty);
        let (mut here, mut elsewhere) = (state(wish), state(wish));
        let want = chosen(&mut here, &logits, 20);
        if penalty == 1.0 {
            // Guesses: each row's numbers are known before the rows before it are looked at.
            let ahead: Vec<u32> = (0..20)
                .map(|at| {
                    elsewhere.choice(at).expect("a choice").choose(&mut logits.clone()).expect("a token")
                })
                .collect();
            assert_eq!(ahead, want);
        } else {
            assert!(elsewhere.choice(1).is_none(), "what is penalised is not known yet");
        }
        for want in want {
            let drawn = elsewhere.choice(0).expect("a choice").choose(&mut logits.clone());
            assert_eq!(elsewhere.chosen(drawn).expect("a token").0.id, want);
        }
    }
    for wish in [
        |s: &mut Sampling| s.logprobs = Some(0),
        |s: &mut Sampling| s.logit_bias = vec![(1, 1.0)],
        |s: &mut Sampling| s.frequency_penalty = 0.1,
        |s: &mut Sampling| s.presence_penalty = 0.1,
        |s: &mut Sampling| s.repetition_penalty = 0.0,
        |s: &mut Sampling| s.top_p = 0.0,
    ] {
        assert!(state(wish).choice(0).is_none());
    }
    assert!(state(|_| ()).chosen(Err(SampleError::NoToken)).is_err());
}

#[test]
fn numbers_that_are_none_end_the_request() {
    assert!(state(|_| ()).choose(&[0.0, f32::NAN]).is_err());
    let error = state(|s| s.logit_bias = vec![(0, 1.0)]).choose(&[f32::NEG_INFINITY]).expect_err("no token");
    assert!(error.to_string().contains("no token"), "{error}");
}

#[test]
fn tokens_of_the_prompt_and_the_text_become_less_likely() {
    let logits = [3.0, 2.0, 1.9, -1.0];
    let state = |prompt: &[u32], penalty: f32| {
        let sampling = Sampling { repetition_penalty: penalty, ..Sampling::greedy() };
        SamplerState::new(prompt, &sampling, None)
    };
    assert_eq!(chosen(&mut state(&[0, 0], 1.0), &logits, 2), [0, 0]);
    // 3 / 2 for the prompt's token, then the others as they come; all are seen once only.
    assert_eq!(chosen(&mut state(&[0], 2.0), &logits, 4), [1, 2, 0, 0]);
    assert_eq!(chosen(&mut state(&[], 2.0), &logits, 4), [0, 1, 2, 0]);
    assert!(state(&[], 0.0).choose(&logits).is_err());
    assert_eq!(keyfold_engine::REPETITION_PENALTY, Repetition::RANGE, "what is let in can be computed");
}
