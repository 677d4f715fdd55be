//! The engine on a thread of its own, and the door to it.
//!
//! Texts that are worked on or wait hold a permit each, of which there are as many as the limits allow: the queue cannot
//! grow beyond them, and who comes too many is told so at once.

mod mailbox;

pub(crate) use mailbox::{Answers, Delta, Outcome};

use crate::{
    config::Limits,
    error::{ApiError, Kind},
    metrics::Metrics,
    model::Model,
};
use keyfold_engine::{ConfigError, Engine, EngineConfig, Finish, Request, RequestId, Runner, Stats, Update};
use mailbox::Mailbox;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What handlers and the engine's thread share.
struct Shared {
    metrics: Metrics,
    stats: Mutex<Stats>,
    /// Whether all work is to end now.
    halt: AtomicBool,
    /// Whether the thread lives.
    alive: AtomicBool,
    /// Mean seconds between the ends of requests while there is work, as bits of an f64.
    pace: AtomicU64,
}

/// A text that goes to the engine.
struct Submitted {
    request: Request,
    live: Live,
}

/// Room for the texts of a request.
pub(crate) struct Room(Vec<OwnedSemaphorePermit>);

/// The door to an engine that works on a thread of its own.
pub struct Service {
    /// The model that is served.
    pub(crate) model: Arc<Model>,
    pub(crate) config: EngineConfig,
    /// Locked for the moment of sending only.
    door: Mutex<Option<Sender<Submitted>>>,
    permits: Arc<Semaphore>,
    limits: Limits,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    pub(crate) started: Instant,
}

impl Service {
    /// Starts an engine for `model`; `make` is called on the engine's thread, for runners that stay on one.
    ///
    /// # Errors
    /// When the limits contradict each other.
    pub fn start<R>(
        model: Model,
        config: EngineConfig,
        limits: &Limits,
        make: impl FnOnce() -> R + Send + 'static,
    ) -> Result<Self, ConfigError>
    where
        R: Runner + 'static,
    {
        config.validate()?;
        let shared = Arc::new(Shared {
            metrics: Metrics::new(model.cache.bytes_per_token),
            stats: Mutex::new(Stats { pages: config.pages, ..Stats::default() }),
            halt: AtomicBool::new(false),
            alive: AtomicBool::new(true),
            pace: AtomicU64::new(0),
        });
        let (sender, receiver) = channel();
        let (request_time, thread_shared) = (limits.request_time, shared.clone());
        let work = move || {
            // Tells that the thread ended, however it does.
            let _alive = Alive(thread_shared.clone());
            if let Ok(engine) = Engine::new(config, make()) {
                Worker { engine, live: HashMap::new(), shared: thread_shared, request_time }.run(&receiver);
            }
        };
        let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(work);
        let thread = thread.map_err(|error| {
            tracing::error!(%error, "no thread for the engine");
            ConfigError { key: "threads", expected: "one more thread".to_owned(), found: 0 }
        })?;
        Ok(Self {
            model: Arc::new(model),
            config,
            door: Mutex::new(Some(sender)),
            permits: Arc::new(Semaphore::new(config.max_running + limits.queue)),
            limits: limits.clone(),
            shared,
            thread: Mutex::new(Some(thread)),
            started: Instant::now(),
        })
    }

    /// Room for `count` texts.
    ///
    /// # Errors
    /// When more wait than allowed.
    pub(crate) fn room(&self, count: usize) -> Result<Room, ApiError> {
        if !self.is_alive() {
            return Err(stopping());
        }
        let permits = (0..count).map_while(|_| self.permits.clone().try_acquire_owned().ok());
        let permits: Vec<OwnedSemaphorePermit> = permits.collect();
        if permits.len() == count {
            return Ok(Room(permits));
        }
        let waiting = self.stats().waiting;
        let message = format!("{waiting} texts wait already, and there is no room for {count} more");
        // The time that those before it take, as fast as it goes now.
        let pace = f64::from_bits(self.shared.pace.load(Relaxed));
        let seconds = (pace * (waiting + count) as f64).ceil().clamp(1.0, 120.0) as u64;
        Err(ApiError { retry_after: Some(seconds), ..ApiError::new(Kind::Overloaded, message) })
    }

    /// Gives the texts of a request to the engine, all or none. `log` names the request in logs.
    ///
    /// # Errors
    /// When one of them can never be served, or the engine has ended.
    pub(crate) fn submit(
        &self,
        requests: Vec<Request>,
        room: Room,
        log: &str,
        arrived: Instant,
    ) -> Result<Answers, ApiError> {
        for request in &requests {
            self.config.check(&request.prompt, request.max_tokens).map_err(|error| {
                use keyfold_engine::RequestError as E;
                let kind = match error {
                    E::TooLong { .. } => Kind::TooLong,
                    E::EmptyPrompt | E::Token { .. } => Kind::Invalid,
                };
                ApiError { param: Some("prompt".to_owned()), ..ApiError::new(kind, error.to_string()) }
            })?;
        }
        let mailbox = Arc::new(Mailbox::new(requests.len()));
        let answers = Answers(mailbox.clone());
        let log: Arc<str> = log.into();
        let door = self.door.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(door) = door.as_ref() else { return Err(stopping()) };
        for (choice, (request, permit)) in requests.into_iter().zip(room.0).enumerate() {
            let (mailbox, log) = (mailbox.clone(), log.clone());
            let live = Live { mailbox, choice, log, arrived, first: None, ended: false, _permit: permit };
            door.send(Submitted { request, live }).map_err(|_| stopping())?;
        }
        Ok(answers)
    }

    /// What the engine has done and holds.
    pub fn stats(&self) -> Stats {
        *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether the engine works.
    pub(crate) fn is_alive(&self) -> bool {
        self.shared.alive.load(Relaxed)
    }

    /// Ends all work that is still going on, and the thread.
    pub fn stop(&self) {
        self.shared.halt.store(true, Relaxed);
        // Without a door the thread ends once nothing is left to do.
        drop(self.door.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the engine's thread panicked");
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop();
    }
}

fn stopping() -> ApiError {
    ApiError { retry_after: Some(5), ..ApiError::new(Kind::Stopping, "the server is about to end") }
}

struct Alive(Arc<Shared>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.alive.store(false, Relaxed);
    }
}

/// A text that the engine works on.
struct Live {
    mailbox: Arc<Mailbox>,
    choice: usize,
    log: Arc<str>,
    arrived: Instant,
    first: Option<Instant>,
    ended: bool,
    _permit: OwnedSemaphorePermit,
}

impl Live {
    fn end(mut self, outcome: Outcome) {
        self.ended = true;
        self.mailbox.end(self.choice, outcome);
    }
}

impl Drop for Live {
    /// Nobody waits for a thread that is gone.
    fn drop(&mut self) {
        if !self.ended {
            self.mailbox.end(self.choice, Outcome::Stopped);
        }
    }
}

/// The engine's thread.
struct Worker<R: Runner> {
    engine: Engine<R>,
    live: HashMap<RequestId, Live>,
    shared: Arc<Shared>,
    request_time: Duration,
}

impl<R: Runner> Worker<R> {
    fn run(mut self, door: &Receiver<Submitted>) {
        let mut last_end: Option<Instant> = None;
        loop {
            if !self.engine.has_work() {
                self.publish();
                last_end = None;
                // Sleeps until somebody comes, or nobody can any more.
                match door.recv() {
                    Ok(submitted) => self.admit(submitted),
                    Err(_) => return,
                }
            }
            while let Ok(submitted) = door.try_recv() {
                self.admit(submitted);
            }
            self.sweep();
            if self.engine.has_work() {
                let updates = self.step();
                let ends = updates.iter().filter(|update| update.end.is_some()).count();
                self.deliver(updates);
                self.measure(ends, &mut last_end);
            }
            self.publish();
        }
    }

    fn admit(&mut self, Submitted { request, live }: Submitted) {
        match self.engine.submit(request) {
            Ok(id) => drop(self.live.insert(id, live)),
            // It was checked before; the reader learns of it all the same.
            Err(error) => {
                tracing::error!(request = %live.log, %error, "refused by the engine");
                live.end(Outcome::Stopped);
            }
        }
    }

    /// Drops what nobody waits for any more.
    fn sweep(&mut self) {
        let halt = self.shared.halt.load(Relaxed);
        let now = Instant::now();
        let over = |live: &Live| now.duration_since(live.arrived) > self.request_time;
        let gone = self.live.iter().filter(|(_, live)| halt || live.mailbox.is_closed() || over(live));
        for id in gone.map(|(id, _)| *id).collect::<Vec<RequestId>>() {
            self.engine.cancel(id);
            if let Some(live) = self.live.remove(&id) {
                let outcome = if halt { Outcome::Stopped } else { Outcome::Timeout };
                tracing::info!(request = %live.log, choice = live.choice, closed = live.mailbox.is_closed(), halt, "cancelled");
                live.end(outcome);
            }
        }
    }

    fn step(&mut self) -> Vec<Update> {
        match self.engine.step() {
            Ok(updates) => updates,
            Err(error) => {
                tracing::error!(%error, "a batch failed");
                self.engine.fail_all(&error.to_string())
            }
        }
    }

    fn deliver(&mut self, updates: Vec<Update>) {
        let now = Instant::now();
        for update in updates {
            let id = update.id;
            let Some(live) = self.live.get_mut(&id) else { continue };
            if !update.tokens.is_empty() && live.first.is_none() {
                live.first = Some(now);
                self.shared.metrics.first_token.observe((now - live.arrived).as_secs_f64());
            }
            let end = update.end.clone();
            live.mailbox.put(live.choice, update);
            let Some(end) = end else { continue };
            live.ended = true;
            let whole = now - live.arrived;
            self.shared.metrics.whole.observe(whole.as_secs_f64());
            let rest = live.first.map(|first| now - first).unwrap_or_default();
            if end.made_tokens > 1 {
                self.shared.metrics.each_token.observe(rest.as_secs_f64() / (end.made_tokens - 1) as f64);
            }
            let finish = match &end.finish {
                Finish::Stop => "stop",
                Finish::Length => "length",
                Finish::Failed(why) => why.as_str(),
            };
            tracing::info!(
                request = %live.log,
                choice = live.choice,
                finish,
                prompt_tokens = end.prompt_tokens,
                cached_tokens = end.cached_tokens,
                made_tokens = end.made_tokens,
                ms = whole.as_millis() as u64,
                "done"
            );
            self.live.remove(&id);
        }
    }

    /// Keeps a running mean of the time between ends.
    fn measure(&mut self, ends: usize, last_end: &mut Option<Instant>) {
        if ends == 0 {
            last_end.get_or_insert_with(Instant::now);
            return;
        }
        let now = Instant::now();
        if let Some(last) = last_end.replace(now) {
            let each = (now - last).as_secs_f64() / ends as f64;
            let old = f64::from_bits(self.shared.pace.load(Relaxed));
            let mean = if old == 0.0 { each } else { 0.8 * old + 0.2 * each };
            self.shared.pace.store(mean.to_bits(), Relaxed);
        }
    }

    fn publish(&self) {
        let stats = self.engine.stats();
        self.shared.metrics.engine(&stats);
        *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }
}
