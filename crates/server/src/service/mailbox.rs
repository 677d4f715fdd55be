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
        // Who sleeps is woken by something to read alone, and by the first.
        let waker = if new { inner.waker.take() } else { None };
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

#[cfg(test)]
mod tests {
    use super::*;
    use keyfold_engine::{Finish, fake::Fake};
    use std::{
        sync::atomic::AtomicUsize,
        task::{Wake, Waker},
    };

    /// An update such as an engine gives.
    fn update(text: &str, end: bool) -> Update {
        let id = some_id();
        let finish = Finish::Length;
        let end = end.then_some(End { finish, prompt_tokens: 1, cached_tokens: 0, made_tokens: 1 });
        let tokens = vec![Token { id: 1, logprobs: None }];
        Update { id, scores: Vec::new(), tokens, text: text.to_owned(), end }
    }

    fn some_id() -> keyfold_engine::RequestId {
        let config = keyfold_engine::EngineConfig {
            pages: 1,
            page_size: 8,
            max_len: 8,
            vocab_size: 8,
            max_batch_tokens: 8,
            max_running: 1,
            max_logits: 2,
            prefix_cache: false,
            lookup: None,
        };
        let mut engine = keyfold_engine::Engine::new(config, Fake::new(1, 8, vec![1])).expect("an engine");
        let request = keyfold_engine::Request {
            prompt: vec![1],
            max_tokens: 1,
            ends: Vec::new(),
            stop: Vec::new(),
            sampling: keyfold_engine::Sampling::greedy(),
            score_prompt: false,
            constraint: None,
            text: None,
        };
        engine.submit(request).expect("accepted")
    }

    struct Bell(AtomicUsize);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn who_sleeps_is_woken_by_the_first_thing_to_read() {
        let answers = Answers(Arc::new(Mailbox::new(2)));
        let bell = Arc::new(Bell(AtomicUsize::new(0)));
        let waker = Waker::from(bell.clone());
        let context = Context::from_waker(&waker);
        assert!(answers.poll(&context).is_pending());
        // Half a character: nothing to show yet.
        answers.0.put(0, update("", false));
        assert_eq!(bell.0.load(Relaxed), 0);
        assert!(answers.0.lock().waker.is_some(), "still to be woken");
        answers.0.put(0, update("é", false));
        assert_eq!(bell.0.load(Relaxed), 1);
        // What is not read in time is joined.
        answers.0.put(1, update("a", false));
        answers.0.put(0, update("b", false));
        answers.0.put(0, update("c", true));
        let read = || match answers.poll(&context) {
            Poll::Ready(Some(delta)) => (delta.choice, delta.text, delta.outcome.is_some()),
            other => panic!("{other:?}"),
        };
        assert_eq!(read(), (0, "ébc".to_owned(), true));
        assert_eq!(read(), (1, "a".to_owned(), false));
        assert!(answers.poll(&context).is_pending());
        answers.0.end(1, Outcome::Stopped);
        assert!(matches!(answers.poll(&context), Poll::Ready(Some(Delta { outcome: Some(_), .. }))));
        assert!(matches!(answers.poll(&context), Poll::Ready(None)));
        let mailbox = answers.0.clone();
        drop(answers);
        assert!(mailbox.is_closed());
    }
}
