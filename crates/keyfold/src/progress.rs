//! A progress bar with loss, speed and time left; silent where standard error is no terminal.

use indicatif::{ProgressBar, ProgressStyle};
use std::time::{Duration, Instant};

/// Progress of a number of updates.
pub(crate) struct Progress {
    bar: ProgressBar,
    start: Instant,
    first_tokens: Option<u64>,
    loss: f64,
}

impl Progress {
    /// A bar for `steps` updates of which `done` are made.
    pub(crate) fn new(name: &str, steps: u64, done: u64) -> Self {
        let bar = ProgressBar::new(steps).with_position(done);
        let style = ProgressStyle::with_template("{prefix:>8} {wide_bar} {pos}/{len} {msg} eta {eta}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(name.to_owned());
        bar.reset_eta();
        Self { bar, start: Instant::now(), first_tokens: None, loss: f64::NAN }
    }

    /// An update was made.
    pub(crate) fn step(&mut self, step: u64, tokens: u64, loss: f64) {
        // Smoothed as the eye would: single batches jump.
        self.loss = if self.loss.is_nan() { loss } else { 0.9 * self.loss + 0.1 * loss };
        let first = *self.first_tokens.get_or_insert(tokens);
        let seconds = self.start.elapsed().max(Duration::from_millis(1)).as_secs_f64();
        let speed = (tokens - first) as f64 / seconds;
        self.bar.set_message(format!("loss {:.3} {speed:.0} tok/s", self.loss));
        self.bar.set_position(step);
    }

    /// A line above the bar.
    pub(crate) fn line(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
