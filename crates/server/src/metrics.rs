//! What is measured, in the form that Prometheus reads.

use keyfold_engine::Stats;
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use std::sync::{Mutex, PoisonError};

type Labels = Vec<(&'static str, String)>;
/// A counter, and what it counts.
type Counted = (Counter, fn(&Stats) -> u64);

/// Everything that is measured.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    running: Gauge,
    waiting: Gauge,
    pages: Family<Labels, Gauge>,
    counters: Vec<Counted>,
    batch_tokens: Histogram,
    pub(crate) first_token: Histogram,
    pub(crate) each_token: Histogram,
    pub(crate) whole: Histogram,
    last: Mutex<Stats>,
}

/// Seconds, from a fast step to the longest answer.
const TIMES: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
const TOKENS: [f64; 12] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0];

impl Metrics {
    pub(crate) fn new(bytes_per_token: u64) -> Self {
        let mut registry = Registry::with_prefix("keyfold");
        let mut counters: Vec<Counted> = Vec::new();
        let mut count = |name: &str, help: &str, of: fn(&Stats) -> u64, registry: &mut Registry| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counters.push((counter, of));
        };
        let r = &mut registry;
        count("prompt_tokens", "Tokens of prompts", |s| s.prompt_tokens, r);
        count("cached_prompt_tokens", "Tokens of prompts found in the cache", |s| s.cached_tokens, r);
        count("generated_tokens", "Tokens made", |s| s.made_tokens, r);
        count("computed_tokens", "Tokens that went through the model", |s| s.computed_tokens, r);
        count("steps", "Batches that went through the model", |s| s.steps, r);
        count("preemptions", "Requests that left the cache for others", |s| s.preemptions, r);
        count("guessed_tokens", "Tokens guessed by looking them up", |s| s.guessed_tokens, r);
        count("right_guesses", "Guessed tokens that were right", |s| s.right_guesses, r);
        let requests = Family::<Labels, Counter>::default();
        r.register("http_requests", "Requests by path and status", requests.clone());
        let (running, waiting) = (Gauge::default(), Gauge::default());
        r.register("running_requests", "Requests that share the cache", running.clone());
        r.register("waiting_requests", "Requests that wait for room in the cache", waiting.clone());
        let pages = Family::<Labels, Gauge>::default();
        r.register("cache_pages", "Pages: used, idle (holding what may be used again), free", pages.clone());
        let bytes: Gauge = Gauge::default();
        bytes.set(i64::try_from(bytes_per_token).unwrap_or(i64::MAX));
        r.register("cache_bytes_per_token", "Bytes of a token in the cache, all layers", bytes);
        let batch_tokens = Histogram::new(TOKENS);
        r.register("batch_tokens", "Tokens of a batch", batch_tokens.clone());
        let mut time = |name: &str, help: &str| {
            let histogram = Histogram::new(TIMES);
            r.register_with_unit(name, help, Unit::Seconds, histogram.clone());
            histogram
        };
        let first_token = time("time_to_first_token", "From a request to its first token");
        let each_token = time("time_per_output_token", "Mean time between the tokens of a request");
        let whole = time("request_duration", "From a request to its last token");
        let last = Mutex::new(Stats::default());
        Self {
            registry,
            requests,
            running,
            waiting,
            pages,
            counters,
            batch_tokens,
            first_token,
            each_token,
            whole,
            last,
        }
    }

    pub(crate) fn answered(&self, path: &str, status: u16) {
        let labels = vec![("path", path.to_owned()), ("status", status.to_string())];
        self.requests.get_or_create(&labels).inc();
    }

    /// Takes over what the engine says.
    pub(crate) fn engine(&self, stats: &Stats) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if stats.steps > last.steps {
            self.batch_tokens.observe(stats.batch_tokens as f64);
        }
        for (counter, of) in &self.counters {
            counter.inc_by(of(stats).saturating_sub(of(&last)));
        }
        self.running.set(stats.running as i64);
        self.waiting.set(stats.waiting as i64);
        let free = stats.pages.saturating_sub(stats.pages_used + stats.pages_idle);
        for (state, pages) in [("used", stats.pages_used), ("idle", stats.pages_idle), ("free", free)] {
            self.pages.get_or_create(&vec![("state", state.to_owned())]).set(pages as i64);
        }
        *last = *stats;
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
