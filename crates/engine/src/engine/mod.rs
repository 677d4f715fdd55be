//! The engine: admits requests, plans batches, takes what they bring.

use crate::{
    config::{ConfigError, EngineConfig},
    pages::PagePool,
    request::{Finish, Request, RequestError, RequestId, Update},
    runner::{Failure, Runner, Work},
    sequence::Sequence,
    share::share,
};
use std::collections::VecDeque;

/// What an engine has done and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests that share the cache now.
    pub running: usize,
    /// Requests that wait for room in it.
    pub waiting: usize,
    /// Pages of the cache.
    pub pages: usize,
    /// Pages that requests use now.
    pub pages_used: usize,
    /// Pages that nobody uses, but whose rows may be used again.
    pub pages_idle: usize,
    /// Batches computed.
    pub steps: u64,
    /// Tokens in the last one.
    pub batch_tokens: usize,
    /// Requests in the last one.
    pub batch_requests: usize,
    /// Tokens computed.
    pub computed_tokens: u64,
    /// Tokens made.
    pub made_tokens: u64,
    /// Tokens of the prompts that were begun.
    pub prompt_tokens: u64,
    /// Those of them that were in the cache already.
    pub cached_tokens: u64,
    /// Tokens guessed.
    pub guessed_tokens: u64,
    /// Those that were right.
    pub right_guesses: u64,
    /// Times that a request had to leave the cache for others.
    pub preemptions: u64,
}

/// Serves many requests with one runner.
///
/// Requests are served in the order in which they came: who came first is admitted first, gets pages first, and is the
/// last to leave when pages run out. Leaving costs the time to compute the rows again, never a token.
pub struct Engine<R: Runner> {
    config: EngineConfig,
    runner: R,
    pool: PagePool,
    /// By age, oldest first.
    running: Vec<Sequence<R>>,
    /// By age, oldest first.
    waiting: VecDeque<Sequence<R>>,
    /// Requests that had nothing to compute.
    done: Vec<Update>,
    next_id: u64,
    stats: Stats,
}

impl<R: Runner> Engine<R> {
    /// An engine with an empty cache.
    ///
    /// # Errors
    /// When the limits contradict each other.
    pub fn new(config: EngineConfig, runner: R) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self {
            config,
            runner,
            pool: PagePool::new(config.pages),
            running: Vec::new(),
            waiting: VecDeque::new(),
            done: Vec::new(),
            next_id: 0,
            stats: Stats::default(),
        })
    }

    /// The limits.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// Takes a request in.
    ///
    /// # Errors
    /// When it can never be served.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, RequestError> {
        self.config.check(&request.prompt, request.max_tokens)?;
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let mut sequence = Sequence::new(id, request, self.config.capacity(), &mut self.runner);
        if sequence.need() == 0 {
            self.done.push(sequence.end(Finish::Length));
        } else {
            self.waiting.push_back(sequence);
        }
        Ok(id)
    }

    /// Drops a request, at any moment; whether it was there.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        if let Some(at) = self.running.iter().position(|sequence| sequence.id == id) {
            self.running.remove(at).leave(&mut self.pool);
            return true;
        }
        let (waiting, done) = (self.waiting.len(), self.done.len());
        self.waiting.retain(|sequence| sequence.id != id);
        self.done.retain(|update| update.id != id);
        self.waiting.len() < waiting || self.done.len() < done
    }

    /// Whether a step would do anything.
    pub fn has_work(&self) -> bool {
        !(self.running.is_empty() && self.waiting.is_empty() && self.done.is_empty())
    }

    /// What was done so far, and what is held.
    pub fn stats(&self) -> Stats {
        Stats {
            running: self.running.len(),
            waiting: self.waiting.len(),
            pages: self.pool.len(),
            pages_used: self.pool.len() - self.pool.available(),
            pages_idle: self.pool.idle(),
            ..self.stats
        }
    }

    /// Computes a batch and tells what it brought.
    ///
    /// # Errors
    /// When the runner computed nothing; see [`Engine::fail_all`].
    pub fn step(&mut self) -> Result<Vec<Update>, R::Error> {
        self.plan();
        let planned = |sequence: &&mut Sequence<R>| sequence.planned() > 0;
        let mut batch: Vec<Work<'_, R::State>> =
            self.running.iter_mut().filter(planned).map(Sequence::work).collect();
        let mut updates = std::mem::take(&mut self.done);
        if batch.is_empty() {
            return Ok(updates);
        }
        self.stats.steps += 1;
        self.stats.batch_requests = batch.len();
        self.stats.batch_tokens = batch.iter().map(|work| work.tokens.len()).sum();
        self.stats.computed_tokens += self.stats.batch_tokens as u64;
        let outputs = match self.runner.run(&mut batch) {
            Ok(outputs) => outputs,
            Err(error) => {
                self.done = updates;
                return Err(error);
            }
        };
        let mut outputs = outputs.into_iter();
        for sequence in self.running.iter_mut().filter(planned) {
            let missing = || Err(Failure("the runner computed fewer requests than it was given".to_owned()));
            let update = match outputs.next().unwrap_or_else(missing) {
                Ok(output) => {
                    self.stats.right_guesses += output.tokens.len().saturating_sub(1) as u64;
                    sequence.take(output, &mut self.pool, self.config.page_size)
                }
                Err(Failure(why)) => sequence.end(Finish::Failed(why)),
            };
            self.stats.made_tokens += update.tokens.len() as u64;
            if update.end.is_some() {
                sequence.leave(&mut self.pool);
            }
            updates.push(update);
        }
        // A running sequence has pages until it ends.
        self.running.retain(|sequence| !sequence.pages.is_empty());
        Ok(updates)
    }

    /// Ends all requests, after a batch failed.
    pub fn fail_all(&mut self, why: &str) -> Vec<Update> {
        let mut updates = std::mem::take(&mut self.done);
        for mut sequence in self.running.drain(..).chain(self.waiting.drain(..)) {
            updates.push(sequence.end(Finish::Failed(why.to_owned())));
            sequence.leave(&mut self.pool);
        }
        // What the failed batch left in the pages of others is not known.
        self.pool.forget();
        updates
    }

    fn plan(&mut self) {
        if !self.grow() {
            self.admit();
        }
        let needs: Vec<usize> = self.running.iter().map(Sequence::need).collect();
        let mut tokens = self.config.max_batch_tokens;
        // Each has the row to choose its next token from.
        let mut rows = self.config.max_logits - self.config.max_running;
        for (sequence, share) in self.running.iter_mut().zip(share(&needs, tokens)) {
            let count = sequence.within_rows(share, rows);
            rows -= sequence.rows(count);
            tokens -= count;
            sequence.plan(count);
        }
        self.guess(tokens, rows);
    }

    /// Sees to it that each running request has pages for its tokens; whether others had to leave for that.
    fn grow(&mut self) -> bool {
        let mut left = false;
        let mut at = 0;
        while at < self.running.len() {
            let wanted = self.running[at].len().div_ceil(self.config.page_size);
            if self.running[at].pages.len() >= wanted {
                at += 1;
            } else if let Some(page) = self.pool.take() {
                self.running[at].pages.push(page);
            } else if let Some(mut youngest) = self.running.pop() {
                youngest.leave(&mut self.pool);
                self.stats.preemptions += 1;
                left = true;
                let place = self.waiting.partition_point(|other| other.id < youngest.id);
                self.waiting.insert(place, youngest);
            }
        }
        left
    }

    /// Lets waiting requests in as long as there are pages for all their tokens.
    fn admit(&mut self) {
        let page_size = self.config.page_size;
        let mut at = 0;
        while at < self.waiting.len() && self.running.len() < self.config.max_running {
            let sequence = &mut self.waiting[at];
            let mut shared = Vec::new();
            if self.config.prefix_cache && sequence.may_share() {
                let keys = sequence.keys(page_size);
                shared.extend(keys.iter().map_while(|key| self.pool.find(key)));
                // What another request is about to compute is worth waiting for.
                let next = keys.get(shared.len());
                if next
                    .is_some_and(|key| self.running.iter().any(|other| other.will_compute(shared.len(), key)))
                {
                    at += 1;
                    continue;
                }
            }
            let new = sequence.len().div_ceil(page_size) - shared.len();
            let revived = shared.iter().filter(|page| self.pool.is_unused(**page)).count();
            // Those that run will grow.
            if new + revived + self.running.len() > self.pool.available() {
                break;
            }
            let Some(mut sequence) = self.waiting.remove(at) else { break };
            for page in &shared {
                self.pool.share(*page);
            }
            if sequence.is_new() {
                self.stats.prompt_tokens += sequence.len() as u64;
                self.stats.cached_tokens += (shared.len() * page_size) as u64;
            }
            sequence.begin(shared, page_size);
            sequence.pages.extend((0..new).map_while(|_| self.pool.take()));
            let place = self.running.partition_point(|other| other.id < sequence.id);
            self.running.insert(place, sequence);
        }
    }

    /// Adds guesses of the next tokens, where there is room that nobody else needs.
    fn guess(&mut self, mut tokens: usize, mut rows: usize) {
        let Some(lookup) = self.config.lookup else { return };
        let spare = self.running.len();
        for sequence in &mut self.running {
            if sequence.need() != 1 || sequence.planned() != 1 {
                continue;
            }
            let most = tokens.min(rows).min(sequence.guessable());
            let mut guesses = lookup.guess(sequence.tokens(), most).to_vec();
            let wanted = (sequence.len() + guesses.len()).div_ceil(self.config.page_size);
            while sequence.pages.len() < wanted && self.pool.available() > spare {
                sequence.pages.extend(self.pool.take());
            }
            guesses.truncate(sequence.pages.len() * self.config.page_size - sequence.len());
            tokens -= guesses.len();
            rows -= guesses.len();
            self.stats.guessed_tokens += guesses.len() as u64;
            sequence.plan_guesses(&guesses);
        }
    }

    /// Checks that no page is lost.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn audit(&self) -> Result<(), String> {
        self.pool.audit()?;
        let held: usize = self.running.iter().map(|sequence| sequence.pages.len()).sum();
        let used = self.pool.len() - self.pool.available();
        // Shared pages count for each of their users.
        if held < used || (self.running.is_empty() && used > 0) {
            return Err(format!("{used} pages are used, {held} are held"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
