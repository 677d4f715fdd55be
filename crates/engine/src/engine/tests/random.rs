//! Random schedules: whatever comes, each request gets the text that it gets alone, and no page is lost.

use super::*;

/// Small random numbers.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % limit
    }
}

struct Asked {
    id: RequestId,
    prompt: Vec<u32>,
    max_tokens: usize,
    sampling: Sampling,
    scored: bool,
}

struct Play {
    dice: Dice,
    engine: Engine<Fake>,
    asked: Vec<Asked>,
    seen: Seen,
    finished: u64,
}

impl Play {
    fn new(seed: u64, config: EngineConfig) -> Self {
        Self {
            dice: Dice(seed),
            engine: engine(config),
            asked: Vec::new(),
            seen: Seen::default(),
            finished: 0,
        }
    }

    fn ask(&mut self) {
        // Few beginnings, so that some are shared.
        let kind = self.dice.below(3) as u32;
        let shared = self.dice.below(14);
        let own = 1 + self.dice.below(6);
        let mut prompt: Vec<u32> = (0..shared as u32).map(|i| 10 + 20 * kind + i).collect();
        prompt.extend((0..own).map(|_| 80 + self.dice.below(4) as u32));
        let temperature = [0.0, 1.0][self.dice.below(2)];
        let sampling = Sampling { temperature, seed: self.dice.below(9) as u64, ..Sampling::greedy() };
        let scored = self.dice.below(6) == 0;
        let max_tokens = self.dice.below(16);
        let request =
            Request { sampling: sampling.clone(), score_prompt: scored, ..request(&prompt, max_tokens) };
        let id = self.engine.submit(request).expect("accepted");
        self.asked.push(Asked { id, prompt, max_tokens, sampling, scored });
    }

    fn cancel(&mut self) {
        if !self.asked.is_empty() {
            let at = self.dice.below(self.asked.len());
            let asked = self.asked.swap_remove(at);
            assert!(self.engine.cancel(asked.id), "{} was to be there", asked.id);
            assert!(!self.engine.cancel(asked.id));
            self.seen.0.remove(&asked.id);
        }
    }

    fn step(&mut self) {
        let updates = self.engine.step().expect("a step");
        let ended: Vec<RequestId> =
            updates.iter().filter(|update| update.end.is_some()).map(|update| update.id).collect();
        self.seen.take(updates);
        for id in ended {
            let at = self.asked.iter().position(|asked| asked.id == id).expect("asked for");
            let asked = self.asked.swap_remove(at);
            let want = Fake::text(&ALPHABET, &asked.prompt, &asked.sampling, asked.max_tokens);
            assert_eq!(self.seen.tokens(id), want);
            let scores = if asked.scored { asked.prompt.len() - 1 } else { 0 };
            assert_eq!(self.seen.0[&id].scores.len(), scores);
            self.seen.0.remove(&id);
            self.finished += 1;
        }
    }

    /// Something happens.
    fn happen(&mut self) {
        match self.dice.below(16) {
            0..4 if self.asked.len() < 12 => self.ask(),
            4 => self.cancel(),
            _ => self.step(),
        }
    }

    fn end(&mut self) {
        let mut steps = 0;
        while self.engine.has_work() {
            self.step();
            steps += 1;
            assert!(steps < 5000, "no end");
        }
        assert!(self.asked.is_empty());
        self.engine.audit().expect("books");
        assert_eq!(self.engine.stats().pages_used, 0, "a page was lost");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 64 } else { 512 }))]
    #[test]
    fn schedules_do_not_show_in_texts(
        seed in any::<u64>(),
        (pages, page_size) in (1usize..7).prop_flat_map(|size| ((35 / size + 1)..40, Just(size))),
        max_running in 1usize..8,
        budget in 0usize..24,
        rows in 1usize..12,
        prefix_cache in any::<bool>(),
        guessing in any::<bool>(),
    ) {
        let mut play = Play::new(seed, EngineConfig {
            pages,
            page_size,
            max_len: 48,
            vocab_size: 100,
            max_batch_tokens: max_running + budget,
            max_running,
            max_logits: max_running + rows,
            prefix_cache,
            lookup: guessing.then_some(Lookup { tokens: 3, longest: 3, shortest: 1 }),
        });
        for _ in 0..300 {
            play.happen();
            prop_assert_eq!(play.engine.audit(), Ok(()));
        }
        play.end();
    }
}

#[test]
fn no_page_is_lost_in_a_million_steps() {
    let steps = if cfg!(debug_assertions) { 20_000 } else { 1_000_000 };
    let lookup = Some(Lookup { tokens: 3, longest: 3, shortest: 1 });
    let mut play = Play::new(1, EngineConfig { lookup, ..config() });
    while play.engine.stats().steps < steps {
        play.happen();
        if play.engine.stats().steps.is_multiple_of(1000) {
            play.engine.audit().expect("books");
        }
    }
    play.end();
    let stats = play.engine.stats();
    assert!(play.finished > steps / 20, "{}", play.finished);
    assert!(
        stats.preemptions > steps / 1000 && stats.cached_tokens > 0 && stats.right_guesses > 0,
        "{stats:?}"
    );
}

/// However many come behind it, a request is finished within as many steps as the work before it takes.
#[test]
fn nobody_is_kept_waiting_by_those_who_come_later() {
    let mut play = Play::new(5, EngineConfig { pages: 12, ..config() });
    for _ in 0..6 {
        play.ask();
    }
    let id = play.engine.submit(request(&[9; 20], 8)).expect("accepted");
    let mut steps = 0;
    while play.seen.0.get(&id).is_none_or(|update| update.end.is_none()) {
        // A flood of short requests.
        while play.engine.stats().waiting < 20 {
            play.engine.submit(request(&[steps % 90, 3], 2)).expect("accepted");
        }
        let updates = play.engine.step().expect("a step");
        play.seen.take(updates);
        steps += 1;
        assert!(steps < 150, "kept waiting");
    }
}
