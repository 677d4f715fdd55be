//! Where the texts of a request wait for their reader.

use keyfold_engine::{End, Logprobs, Token, Update};
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

/// How a text ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// As the engine says.
    End(End),
    /// It took longer than allowed.
    Timeout,
    /// The server ends.
    Stopped,
}

/// What came for one text since it was last read.
#[derive(Debug, Default)]
pub(crate) struct Delta {
    /// Which text of the request.
    pub(crate) choice: usize,
    /// Log-probabilities of the prompt's next tokens.
    pub(crate) scores: Vec<Logprobs>,
    /// New tokens, if log-probabilities were asked for.
    pub(crate) tokens: Vec<Token>,
    /// New text.
    pub(crate) text: String,
    /// The last one says how it ended.
    pub(crate) outcome: Option<Outcome>,
}

/// The texts of one request, written by the engine's thread, read by a connection. What is not read in time is joined,
/// so it holds no more than the texts themselves.
#[derive(Debug)]
pub(crate) struct Mailbox {
    inner: Mutex<Inner>,
    closed: AtomicBool,
}

#[derive(Debug)]
struct Inner {
    deltas: Vec<Delta>,
    /// Texts with something new, each once.
    fresh: VecDeque<usize>,
    /// Texts whose end was not read yet.
    open: usize,
    waker: Option<Waker>,
}

impl Mailbox {
    pub(crate) fn new(choices: usize) -> Self {
        let deltas = (0..choices).map(|choice| Delta { choice, ..Delta::default() }).collect();
        let inner = Inner { deltas, fresh: VecDeque::new(), open: choices, waker: None };
        Self { inner: Mutex::new(inner), closed: AtomicBool::new(false) }
    }

    /// Nobody panics while holding the lock.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody will read what comes.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    pub(crate) fn put(&self, choice: usize, update: Update) {
        self.write(choice, |delta| {
            delta.scores.extend(update.scores);
            delta.tokens.extend(update.tokens.into_iter().filter(|token| token.logprobs.is_some()));
            delta.text += &update.text;
            delta.outcome = update.end.map(Outcome::End);
        });
    }

    pub(crate) fn end(&self, choice: usize, outcome: Outcome) {
        self.write(choice, |delta| delta.outcome = Some(outcome));
    }

    fn write(&self, choice: usize, change: impl FnOnce(&mut Delta)) {
        let mut inner = self.lock();
        let Some(delta) = inner.deltas.get_mut(choice) else { return };
        change(delta);
        let new = !(delta.scores.is_empty() && delta.tokens.is_empty() && delta.text.is_empty())
            || delta.outcome.is_some();
        if new && !inner.fresh.contains(&choice) {
            inner.fresh.push_back(choice);
        }
        let waker = inner.waker.take().filter(|_| new);
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn poll(&self, context: &Context<'_>) -> Poll<Option<Delta>> {
        let mut inner = self.lock();
        if let Some(choice) = inner.fresh.pop_front() {
            let delta = std::mem::replace(&mut inner.deltas[choice], Delta { choice, ..Delta::default() });
            inner.open -= usize::from(delta.outcome.is_some());
            return Poll::Ready(Some(delta));
        }
        if inner.open == 0 {
            return Poll::Ready(None);
        }
        inner.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

/// The reader of a mailbox; who drops it is no longer interested, and the work ends.
#[derive(Debug)]
pub(crate) struct Answers(pub(super) Arc<Mailbox>);

impl Answers {
    /// What came next, of whichever text; none when all have ended.
    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<Option<Delta>> {
        self.0.poll(context)
    }

    /// What came next, of whichever text; none when all have ended.
    pub(crate) async fn next(&self) -> Option<Delta> {
        std::future::poll_fn(|context| self.poll(context)).await
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.0.closed.store(true, Relaxed);
    }
}
