//! A request while it is served.

use crate::{
    pages::{PageKey, PagePool},
    request::{Detokenizer, End, Finish, Request, RequestId, Token, Update},
    runner::{Output, Runner, Work},
    stop::StopStrings,
};

/// A request while it is served: its tokens, how many of them are computed, and where.
pub(crate) struct Sequence<R: Runner> {
    pub(crate) id: RequestId,
    state: R::State,
    /// The prompt and what was made; while a batch is computed, the guesses too.
    tokens: Vec<u32>,
    prompt: usize,
    /// Length that it may have in all.
    longest: usize,
    ends: Vec<u32>,
    stop: StopStrings,
    text: Option<Box<dyn Detokenizer>>,
    /// Tokens whose rows are in `pages`.
    computed: usize,
    pub(crate) pages: Vec<u32>,
    /// Of all full pages that `tokens` make.
    keys: Vec<PageKey>,
    /// Pages whose keys the pool was told or had told.
    published: usize,
    score: bool,
    /// Tokens of the prompt whose logits were compared with the next token.
    scored: usize,
    /// Found in the cache when it was first begun.
    cached: Option<usize>,
    /// Tokens to compute in the coming step, guesses included.
    planned: usize,
    guesses: usize,
}

impl<R: Runner> Sequence<R> {
    pub(crate) fn new(id: RequestId, request: Request, longest: usize, runner: &mut R) -> Self {
        let Request { prompt, max_tokens, ends, stop, sampling, score_prompt, constraint, text } = request;
        Self {
            id,
            state: runner.begin(&prompt, sampling, constraint),
            longest: prompt.len().saturating_add(max_tokens).min(longest),
            prompt: prompt.len(),
            tokens: prompt,
            ends,
            stop: StopStrings::new(stop),
            text,
            computed: 0,
            pages: Vec::new(),
            keys: Vec::new(),
            published: 0,
            score: score_prompt,
            scored: 0,
            cached: None,
            planned: 0,
            guesses: 0,
        }
    }

    /// Tokens still to compute.
    pub(crate) fn need(&self) -> usize {
        self.goal() - self.computed
    }

    /// Tokens to compute in all. Where none is to be made, the last token's logits are of no use.
    fn goal(&self) -> usize {
        match (self.longest > self.prompt, self.score) {
            (true, _) => self.tokens.len() - self.guesses,
            (false, true) => self.prompt - 1,
            (false, false) => 0,
        }
    }

    /// Tokens known.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub(crate) fn planned(&self) -> usize {
        self.planned
    }

    /// Tokens that can still be guessed and come to use: the last one made is never computed.
    pub(crate) fn guessable(&self) -> usize {
        (self.longest - self.tokens.len()).saturating_sub(1)
    }

    /// Keys of the full pages that its tokens make, but for the last token: its logits are needed, so it is computed.
    pub(crate) fn keys(&mut self, page_size: usize) -> &[PageKey] {
        let full = (self.tokens.len() - 1) / page_size;
        while self.keys.len() < full {
            let at = self.keys.len() * page_size;
            self.keys.push(PageKey::new(self.keys.last(), &self.tokens[at..at + page_size]));
        }
        &self.keys[..full]
    }

    /// Whether it is about to compute the page with `key`, the one behind `pages` others.
    pub(crate) fn will_compute(&self, pages: usize, key: &PageKey) -> bool {
        self.published <= pages && self.keys.get(pages) == Some(key)
    }

    /// Whether pages that others computed are of use: rows whose logits are wanted are computed anew.
    pub(crate) fn may_share(&self) -> bool {
        !self.score || self.scored + 1 >= self.prompt
    }

    /// Whether it was never begun.
    pub(crate) fn is_new(&self) -> bool {
        self.cached.is_none()
    }

    /// Begins with pages that others computed.
    pub(crate) fn begin(&mut self, shared: Vec<u32>, page_size: usize) {
        self.published = shared.len();
        self.computed = shared.len() * page_size;
        self.pages = shared;
        // What is found after a preemption it may have computed itself.
        self.cached.get_or_insert(self.computed);
    }

    /// Leaves the cache; what it needs is computed again later.
    pub(crate) fn leave(&mut self, pool: &mut PagePool) {
        for page in self.pages.drain(..).rev() {
            pool.give_back(page);
        }
        (self.computed, self.published, self.planned) = (0, 0, 0);
        self.drop_guesses();
    }

    /// Rows of logits, beyond the one to choose from, that computing `count` tokens takes.
    pub(crate) fn rows(&self, count: usize) -> usize {
        if !self.score {
            return 0;
        }
        let from = self.computed.max(self.scored);
        (self.computed + count).min(self.prompt - 1).saturating_sub(from)
    }

    /// The most tokens, up to `count`, that take at most `rows` such rows.
    pub(crate) fn within_rows(&self, count: usize, rows: usize) -> usize {
        let before = self.scored.saturating_sub(self.computed);
        if self.rows(count) <= rows { count } else { count.min(before + rows) }
    }

    /// Computes `count` tokens in the coming step.
    pub(crate) fn plan(&mut self, count: usize) {
        self.planned = count;
    }

    /// Computes these in the coming step as well, in the hope that they come.
    pub(crate) fn plan_guesses(&mut self, guesses: &[u32]) {
        self.tokens.extend_from_slice(guesses);
        self.guesses = guesses.len();
        self.planned += guesses.len();
    }

    pub(crate) fn drop_guesses(&mut self) {
        self.tokens.truncate(self.tokens.len() - self.guesses);
        self.guesses = 0;
    }

    /// Its part of the coming step.
    pub(crate) fn work(&mut self) -> Work<'_, R::State> {
        let end = self.computed + self.planned;
        let scores = self.rows(self.planned);
        let from = self.computed.max(self.scored);
        let targets = if scores > 0 { &self.tokens[from + 1..from + 1 + scores] } else { &[] };
        Work {
            id: self.id,
            state: &mut self.state,
            tokens: &self.tokens[self.computed..end],
            past: self.computed,
            pages: &self.pages,
            targets,
            sample: end == self.tokens.len() && self.longest > self.prompt,
            guesses: self.guesses,
            ends: &self.ends,
        }
    }

    /// Takes what its part of the step brought; tokens made, guesses that were right.
    pub(crate) fn take(&mut self, output: Output, pool: &mut PagePool, page_size: usize) -> Update {
        let guesses = self.guesses;
        self.scored += output.scores.len();
        self.drop_guesses();
        self.computed += self.planned - guesses + output.tokens.len().saturating_sub(1);
        self.planned = 0;
        let mut update =
            Update { id: self.id, scores: output.scores, tokens: Vec::new(), text: String::new(), end: None };
        for token in output.tokens {
            if let Some(finish) = self.push(token, &mut update) {
                self.finish(&mut update, finish);
                break;
            }
        }
        if update.end.is_none() {
            let full = self.tokens.len() >= self.longest;
            if output.complete {
                self.finish(&mut update, Finish::Stop);
            } else if full && (self.longest > self.prompt || self.need() == 0) {
                self.finish(&mut update, Finish::Length);
            }
        }
        self.publish(pool, page_size);
        update
    }

    /// Adds a token; why the text ends with it, if it does.
    fn push(&mut self, token: Token, update: &mut Update) -> Option<Finish> {
        if self.ends.contains(&token.id) {
            return Some(Finish::Stop);
        }
        self.tokens.push(token.id);
        let piece = self.text.as_mut().map(|text| text.push(token.id)).unwrap_or_default();
        update.tokens.push(token);
        let (text, stopped) = self.stop.push(&piece);
        update.text += &text;
        if stopped {
            self.text = None;
            return Some(Finish::Stop);
        }
        None
    }

    /// Ends the text.
    fn finish(&mut self, update: &mut Update, finish: Finish) {
        // A stop string takes what is behind it along.
        if let Some(mut text) = self.text.take() {
            let (rest, stopped) = self.stop.push(&text.finish());
            update.text += &rest;
            if !stopped {
                update.text += &self.stop.finish();
            }
        }
        update.end = Some(End {
            finish,
            prompt_tokens: self.prompt,
            cached_tokens: self.cached.unwrap_or(0),
            made_tokens: self.tokens.len() - self.prompt,
        });
    }

    /// Tells the pool of the pages that are full by now.
    fn publish(&mut self, pool: &mut PagePool, page_size: usize) {
        let full = (self.computed / page_size).min(self.pages.len());
        if full == self.published {
            return;
        }
        while self.keys.len() < full {
            let at = self.keys.len() * page_size;
            self.keys.push(PageKey::new(self.keys.last(), &self.tokens[at..at + page_size]));
        }
        for (page, key) in self.pages.iter().zip(&self.keys).take(full).skip(self.published) {
            pool.publish(*page, *key);
        }
        self.published = full;
    }

    /// Ends it, with nothing new.
    pub(crate) fn end(&mut self, finish: Finish) -> Update {
        self.drop_guesses();
        self.planned = 0;
        let mut update =
            Update { id: self.id, scores: Vec::new(), tokens: Vec::new(), text: String::new(), end: None };
        self.finish(&mut update, finish);
        update
    }
}
