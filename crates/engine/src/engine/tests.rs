use super::*;
use crate::{Constraint, Detokenizer, Lookup, Sampling, fake::Fake};
use proptest::prelude::*;
use std::collections::HashMap;

const ALPHABET: [u32; 5] = [1, 2, 3, 4, 5];

fn config() -> EngineConfig {
    EngineConfig {
        pages: 16,
        page_size: 4,
        max_len: 48,
        vocab_size: 100,
        max_batch_tokens: 12,
        max_running: 6,
        max_logits: 12,
        prefix_cache: true,
        lookup: None,
    }
}

fn engine(config: EngineConfig) -> Engine<Fake> {
    let fake = Fake::new(config.pages, config.page_size, ALPHABET.to_vec());
    Engine::new(config, fake).expect("an engine")
}

fn request(prompt: &[u32], max_tokens: usize) -> Request {
    Request {
        prompt: prompt.to_vec(),
        max_tokens,
        ends: Vec::new(),
        stop: Vec::new(),
        sampling: Sampling::greedy(),
        score_prompt: false,
        constraint: None,
        text: None,
    }
}

/// All that came for each request, joined.
#[derive(Default)]
struct Seen(HashMap<RequestId, Update>);

impl Seen {
    fn take(&mut self, updates: Vec<Update>) {
        for update in updates {
            match self.0.get_mut(&update.id) {
                None => drop(self.0.insert(update.id, update)),
                Some(seen) => {
                    assert!(seen.end.is_none(), "an update after the end");
                    seen.scores.extend(update.scores);
                    seen.tokens.extend(update.tokens);
                    seen.text += &update.text;
                    seen.end = update.end;
                }
            }
        }
    }

    fn tokens(&self, id: RequestId) -> Vec<u32> {
        self.0[&id].tokens.iter().map(|token| token.id).collect()
    }

    fn end(&self, id: RequestId) -> &crate::End {
        self.0[&id].end.as_ref().expect("an end")
    }
}

fn finish(engine: &mut Engine<Fake>, seen: &mut Seen) -> usize {
    let mut steps = 0;
    while engine.has_work() {
        seen.take(engine.step().expect("a step"));
        engine.audit().expect("books");
        steps += 1;
        assert!(steps < 10_000, "no end");
    }
    assert_eq!(engine.stats().pages_used, 0, "a page was lost");
    steps
}

fn alone(prompt: &[u32], count: usize) -> Vec<u32> {
    Fake::text(&ALPHABET, prompt, &Sampling::greedy(), count)
}

#[test]
fn many_requests_get_the_text_that_each_gets_alone() {
    let mut engine = engine(config());
    let prompts: Vec<Vec<u32>> = (1..8).map(|n| (0..3 * n).map(|i| i * n % 90).collect()).collect();
    let ids: Vec<RequestId> =
        prompts.iter().map(|prompt| engine.submit(request(prompt, 10)).expect("accepted")).collect();
    let mut seen = Seen::default();
    finish(&mut engine, &mut seen);
    for (id, prompt) in ids.into_iter().zip(&prompts) {
        assert_eq!(seen.tokens(id), alone(prompt, 10));
        assert_eq!(seen.end(id).finish, Finish::Length);
        assert_eq!((seen.end(id).prompt_tokens, seen.end(id).made_tokens), (prompt.len(), 10));
    }
    let stats = engine.stats();
    assert_eq!(stats.made_tokens, 70);
    assert!(stats.preemptions > 0, "the cache is too small for all");
}

#[test]
fn a_shared_beginning_is_computed_once() {
    let mut engine = engine(EngineConfig { pages: 40, ..config() });
    let prompt: Vec<u32> = (10..31).collect();
    let mut seen = Seen::default();
    let first = engine.submit(request(&prompt, 4)).expect("accepted");
    finish(&mut engine, &mut seen);
    let computed = engine.stats().computed_tokens;
    let again = engine.submit(request(&prompt, 4)).expect("accepted");
    finish(&mut engine, &mut seen);
    assert_eq!(seen.tokens(first), seen.tokens(again));
    assert_eq!((seen.end(first).cached_tokens, seen.end(again).cached_tokens), (0, 20));
    assert_eq!(
        engine.stats().computed_tokens,
        computed + 4,
        "the last token of the prompt and three new ones"
    );
    assert_eq!(engine.stats().cached_tokens, 20);
    // A conversation goes on where it stopped.
    let longer: Vec<u32> = prompt.iter().chain(&seen.tokens(first)).copied().chain([50, 51]).collect();
    let third = engine.submit(request(&longer, 4)).expect("accepted");
    finish(&mut engine, &mut seen);
    assert_eq!(seen.end(third).cached_tokens, 24);
    assert_eq!(seen.tokens(third), alone(&longer, 4));
}

#[test]
fn equal_prompts_that_come_together_wait_for_the_first() {
    let mut engine = engine(EngineConfig { pages: 60, ..config() });
    let prompt: Vec<u32> = (10..42).collect();
    let ids: Vec<_> = (0..5).map(|_| engine.submit(request(&prompt, 2)).expect("accepted")).collect();
    let mut seen = Seen::default();
    finish(&mut engine, &mut seen);
    assert!(ids.iter().all(|id| seen.tokens(*id) == alone(&prompt, 2)));
    // The page with the prompt's last token is each one's own.
    assert_eq!(engine.stats().computed_tokens, 32 + 4 * 4 + 5);
}

#[test]
fn a_whole_prompt_in_the_cache_still_has_its_last_token_computed() {
    let mut engine = engine(config());
    let prompt: Vec<u32> = (10..18).collect();
    let mut seen = Seen::default();
    for _ in 0..2 {
        let id = engine.submit(request(&prompt, 3)).expect("accepted");
        finish(&mut engine, &mut seen);
        assert_eq!(seen.tokens(id), alone(&prompt, 3));
    }
}

#[test]
fn without_prefix_cache_nothing_is_shared() {
    let mut engine = engine(EngineConfig { prefix_cache: false, ..config() });
    let prompt: Vec<u32> = (10..26).collect();
    let mut seen = Seen::default();
    for _ in 0..2 {
        engine.submit(request(&prompt, 1)).expect("accepted");
        finish(&mut engine, &mut seen);
    }
    assert_eq!((engine.stats().computed_tokens, engine.stats().cached_tokens), (32, 0));
}

#[test]
fn the_oldest_is_never_sent_away() {
    let mut engine = engine(EngineConfig { pages: 8, ..config() });
    let old: Vec<u32> = (10..18).collect();
    let first = engine.submit(request(&old, 24)).expect("accepted");
    for other in 20..26 {
        engine.submit(request(&[other; 5], 24)).expect("accepted");
    }
    let mut seen = Seen::default();
    let mut steps = 0;
    while seen.0.get(&first).is_none_or(|update| update.end.is_none()) {
        seen.take(engine.step().expect("a step"));
        steps += 1;
    }
    assert_eq!(steps, 24, "a token in every step");
    assert!(engine.stats().preemptions > 0);
    finish(&mut engine, &mut seen);
    for (id, update) in &seen.0 {
        assert_eq!(update.tokens.len(), 24, "{id}");
    }
}

#[test]
fn writing_goes_on_while_a_long_prompt_is_read() {
    let mut engine = engine(EngineConfig { pages: 40, ..config() });
    let writer = engine.submit(request(&[10, 11], 20)).expect("accepted");
    let mut seen = Seen::default();
    seen.take(engine.step().expect("a step"));
    let long: Vec<u32> = (20..60).collect();
    engine.submit(request(&long, 1)).expect("accepted");
    for made in 2..6 {
        seen.take(engine.step().expect("a step"));
        assert_eq!(seen.tokens(writer).len(), made);
        assert_eq!(engine.stats().batch_tokens, 12.min(1 + 40 - (made - 2) * 11));
    }
}

#[test]
fn an_end_token_ends_and_is_not_shown() {
    let text = alone(&[9, 8, 7], 12);
    let end = text[5];
    let at = text.iter().position(|token| *token == end).expect("there");
    for lookup in [None, Some(Lookup::default())] {
        let mut engine = engine(EngineConfig { lookup, ..config() });
        let request = Request { ends: vec![end], ..request(&[9, 8, 7], 12) };
        let id = engine.submit(request).expect("accepted");
        let mut seen = Seen::default();
        finish(&mut engine, &mut seen);
        assert_eq!(seen.tokens(id), text[..at]);
        assert_eq!(seen.end(id).finish, Finish::Stop);
    }
}

/// Tokens as letters.
struct Letters;

impl Detokenizer for Letters {
    fn push(&mut self, token: u32) -> String {
        char::from(b'a' + token as u8).to_string()
    }

    fn finish(&mut self) -> String {
        "!".to_owned()
    }
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let letters: String = alone(&[9], 20).iter().map(|token| char::from(b'a' + *token as u8)).collect();
    let stop = &letters[7..10];
    let at = letters.find(stop).expect("there");
    let mut engine = engine(config());
    let asked = |stop: &[&str], max_tokens| Request {
        stop: stop.iter().map(|stop| (*stop).to_owned()).collect(),
        text: Some(Box::new(Letters)),
        ..request(&[9], max_tokens)
    };
    let stopped = engine.submit(asked(&[stop, "zz"], 20)).expect("accepted");
    let free = engine.submit(asked(&["zz"], 20)).expect("accepted");
    let mut seen = Seen::default();
    finish(&mut engine, &mut seen);
    assert_eq!(seen.0[&stopped].text, letters[..at]);
    assert_eq!(seen.end(stopped).finish, Finish::Stop);
    assert_eq!(seen.end(stopped).made_tokens, at + 3);
    assert_eq!(seen.0[&free].text, letters + "!");
}

#[test]
fn prompts_are_scored_in_chunks_and_across_preemptions() {
    let score = |pages, max_tokens| {
        let mut engine = engine(EngineConfig { pages, max_logits: 8, ..config() });
        let mut seen = Seen::default();
        let writer = engine.submit(request(&[70], 25)).expect("accepted");
        let prompt: Vec<u32> = (10..32).collect();
        let scored = Request {
            score_prompt: true,
            sampling: Sampling { logprobs: Some(2), ..Sampling::greedy() },
            ..request(&prompt, max_tokens)
        };
        let id = engine.submit(scored).expect("accepted");
        finish(&mut engine, &mut seen);
        assert_eq!(seen.tokens(writer).len(), 25);
        assert_eq!(seen.0[&id].scores.len(), 21);
        assert_eq!(seen.tokens(id), alone(&prompt, max_tokens));
        let made = &seen.0[&id].tokens;
        assert!(made.iter().all(|token| token.logprobs.as_ref().is_some_and(|l| l.top.len() == 2)));
        (seen.0.remove(&id).expect("seen").scores, engine.stats().preemptions)
    };
    let (roomy, none) = score(16, 6);
    let (tight, some) = score(8, 6);
    assert!(none == 0 && some > 0, "{none} {some}");
    assert_eq!(roomy, tight);
    assert_eq!(roomy, score(16, 0).0);
}

#[test]
fn nothing_to_do_is_done_at_once() {
    let mut engine = engine(config());
    let id = engine.submit(request(&[1, 2], 0)).expect("accepted");
    let single = engine.submit(Request { score_prompt: true, ..request(&[1], 0) }).expect("accepted");
    let mut seen = Seen::default();
    assert_eq!(finish(&mut engine, &mut seen), 1);
    assert_eq!(
        (seen.end(id).finish.clone(), seen.end(single).finish.clone()),
        (Finish::Length, Finish::Length)
    );
    assert_eq!(engine.stats().computed_tokens, 0);
}

#[test]
fn guesses_change_no_token_but_save_steps() {
    let run = |lookup, sampling: &Sampling| {
        let mut engine =
            engine(EngineConfig { pages: 40, max_batch_tokens: 40, max_logits: 40, lookup, ..config() });
        let mut seen = Seen::default();
        let request = Request { sampling: sampling.clone(), ..request(&[1, 2, 3], 44) };
        let id = engine.submit(request).expect("accepted");
        let steps = finish(&mut engine, &mut seen);
        (seen.tokens(id), steps, engine.stats())
    };
    let greedy = Sampling::greedy();
    let (plain, steps, _) = run(None, &greedy);
    let (guessed, fewer, stats) = run(Some(Lookup::default()), &greedy);
    assert_eq!(plain, guessed);
    assert!(fewer + stats.right_guesses as usize == steps && fewer * 4 < steps * 3, "{fewer} of {steps}");
    let random = Sampling { temperature: 1.0, seed: 3, ..greedy };
    assert_eq!(run(None, &random).0, run(Some(Lookup { shortest: 1, ..Lookup::default() }), &random).0);
}

/// Wants the digits 1, 2, 3 and then ends.
struct Counting(u32);

impl Constraint for Counting {
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String> {
        for (token, logit) in logits.iter_mut().enumerate() {
            if token as u32 != self.0 + 1 {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<bool, String> {
        self.0 = token;
        Ok(token == 3)
    }
}

#[test]
fn a_fulfilled_constraint_ends_the_text() {
    let mut engine = engine(config());
    let request = Request { constraint: Some(Box::new(Counting(0))), ..request(&[9], 20) };
    let id = engine.submit(request).expect("accepted");
    let mut seen = Seen::default();
    finish(&mut engine, &mut seen);
    assert_eq!(seen.tokens(id), [1, 2, 3]);
    assert_eq!(seen.end(id).finish, Finish::Stop);
}

#[test]
fn failures_end_what_they_concern() {
    let mut engine = engine(config());
    engine.runner.poison = Some(66);
    engine.runner.broken = Some(99);
    let bad = engine.submit(request(&[9, 66], 4)).expect("accepted");
    let good = engine.submit(request(&[9, 65], 4)).expect("accepted");
    let mut seen = Seen::default();
    finish(&mut engine, &mut seen);
    assert_eq!(seen.end(bad).finish, Finish::Failed("a poisoned token".to_owned()));
    assert_eq!(seen.tokens(good), alone(&[9, 65], 4));
    engine.submit(request(&[99], 4)).expect("accepted");
    engine.submit(request(&[9, 65], 4)).expect("accepted");
    let error = engine.step().expect_err("broken");
    assert_eq!(engine.fail_all(&error.to_string()).len(), 2);
    assert!(!engine.has_work());
    assert_eq!(engine.stats().pages_idle, 0, "what the pages hold is not known");
    let good = engine.submit(request(&[9, 65], 4)).expect("accepted");
    finish(&mut engine, &mut seen);
    assert_eq!(seen.tokens(good), alone(&[9, 65], 4));
}

#[test]
fn impossible_requests_are_refused() {
    let mut engine = engine(config());
    let mut refuse =
        |prompt: &[u32], max_tokens| engine.submit(request(prompt, max_tokens)).expect_err("refused");
    assert_eq!(refuse(&[], 1), RequestError::EmptyPrompt);
    assert_eq!(refuse(&[1; 48], 1), RequestError::TooLong { tokens: 48, limit: 47 });
    assert_eq!(refuse(&[1; 49], 0), RequestError::TooLong { tokens: 49, limit: 48 });
    assert_eq!(refuse(&[1, 100], 1), RequestError::Token { token: 100, vocab_size: 100 });
    assert_eq!(refuse(&[1, 100], 1).to_string(), "the prompt has the token 100: expected ids below 100");
    let tight = EngineConfig { max_batch_tokens: 5, ..config() };
    let error = tight.validate().expect_err("refused").to_string();
    assert_eq!(error, "max_batch_tokens is 5: expected at least 6");
}

#[test]
fn the_longest_sequence_is_not_exceeded() {
    let mut engine = engine(config());
    let id = engine.submit(request(&[1; 40], 1000)).expect("accepted");
    let mut seen = Seen::default();
    finish(&mut engine, &mut seen);
    assert_eq!(seen.tokens(id).len(), 8);
    assert_eq!(seen.end(id).finish, Finish::Length);
}

mod random;
