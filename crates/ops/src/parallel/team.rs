//! Threads that look for the next region for a while before they go to sleep.
//!
//! The caller is member 0 and can do everything itself: members join a region while it is open and take tasks that
//! nobody has, first their own, then others'. The caller waits only for members who joined, so one that sleeps or is not
//! scheduled costs nothing but its help.

use std::{
    any::Any,
    hint::spin_loop,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    ptr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle, Thread},
    time::{Duration, Instant},
};

/// Most members of a region.
const MAX_MEMBERS: usize = 64;
/// How long a member looks without letting others have the processor, and until it sleeps.
const SPIN: Duration = Duration::from_micros(20);
const PATIENCE: Duration = Duration::from_micros(150);

/// How long after its own last task a caller waits, at least, before it takes the machine to be busy.
const LATE: Duration = Duration::from_millis(1);
/// Regions that a caller then does alone: at first, and after being disappointed again and again.
const ALONE: [u32; 2] = [32, 1024];
/// Regions without delay after which the caller is confident again.
const CONFIDENT: u32 = 256;

/// Layout of [`Shared::state`]: members who joined, whether more may, how many members the region is for, its number.
const JOINED: u64 = (1 << 16) - 1;
const OPEN: u64 = 1 << 16;
const MEMBERS_SHIFT: u32 = 17;
const EPOCH_SHIFT: u32 = 24;

/// What all members see. Cache lines of their own for what each writes.
#[repr(align(128))]
struct Shared {
    state: AtomicU64,
    region: AtomicPtr<Region<'static>>,
    /// Whether a caller is running a region; who set it owns the trust.
    busy: AtomicBool,
    trust: Trust,
    stop: AtomicBool,
    members: [Member; MAX_MEMBERS],
}

/// Whether sharing a region pays. Where others want the processors too, a member is stopped in the midst of a task for
/// many times the length of a region, and the caller with it.
#[derive(Default)]
struct Trust {
    /// Regions that are still to be done alone.
    alone: AtomicU32,
    /// How many it was last time.
    penalty: AtomicU32,
    /// Regions without delay since then.
    good: AtomicU32,
}

impl Trust {
    fn exists(&self) -> bool {
        let alone = self.alone.load(Ordering::Relaxed);
        self.alone.store(alone.saturating_sub(1), Ordering::Relaxed);
        alone == 0
    }

    fn judge(&self, late: bool) {
        let (penalty, good) = (self.penalty.load(Ordering::Relaxed), self.good.load(Ordering::Relaxed));
        let before = if good < CONFIDENT { penalty } else { 0 };
        if late {
            let penalty = (2 * before).clamp(ALONE[0], ALONE[1]);
            self.penalty.store(penalty, Ordering::Relaxed);
            self.alone.store(penalty, Ordering::Relaxed);
        }
        self.good.store(if late { 0 } else { good.saturating_add(1) }, Ordering::Relaxed);
    }
}

#[repr(align(128))]
#[derive(Default)]
struct Member {
    /// The first of its tasks that nobody has taken.
    next: AtomicUsize,
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

/// A call of [`Team::run`], on the caller's stack.
struct Region<'a> {
    work: &'a (dyn Fn(usize) + Sync),
    tasks: usize,
    members: usize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

pub(super) struct Team {
    shared: Arc<Shared>,
    workers: Mutex<Vec<JoinHandle<()>>>,
    /// Length of `workers`.
    count: AtomicUsize,
}

impl Team {
    /// A team of the caller alone; threads start when a region asks for them.
    pub(super) fn new() -> Self {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            region: AtomicPtr::new(ptr::null_mut()),
            busy: AtomicBool::new(false),
            trust: Trust::default(),
            stop: AtomicBool::new(false),
            members: std::array::from_fn(|_| Member::default()),
        });
        Self { shared, workers: Mutex::default(), count: AtomicUsize::new(0) }
    }

    /// Calls `work` for each of `0..tasks` on up to `members` threads; see [`super::brief`].
    pub(super) fn run(&self, tasks: usize, members: usize, work: &(dyn Fn(usize) + Sync)) {
        let members = members.min(tasks).min(MAX_MEMBERS);
        let shared = &*self.shared;
        if members <= 1 || shared.busy.swap(true, Ordering::Acquire) {
            return (0..tasks).for_each(work);
        }
        if !shared.trust.exists() {
            shared.busy.store(false, Ordering::Release);
            return (0..tasks).for_each(work);
        }
        if self.count.load(Ordering::Relaxed) + 1 < members {
            self.grow(members - 1);
        }
        let region = Region { work, tasks, members, panic: Mutex::new(None) };
        let late = shared.lead(&region);
        shared.trust.judge(late);
        shared.busy.store(false, Ordering::Release);
        if let Some(payload) = region.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(payload);
        }
    }

    /// Whether a member is looking for a region just now, which nobody else has.
    pub(super) fn is_awake(&self) -> bool {
        let first = &self.shared.members[1];
        first.thread.get().is_some()
            && !first.asleep.load(Ordering::Relaxed)
            && !self.shared.busy.load(Ordering::Relaxed)
    }

    /// Starts threads until there are `wanted`, or as many as the system gives.
    #[cold]
    fn grow(&self, wanted: usize) {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        while workers.len() < wanted {
            let (shared, id) = (self.shared.clone(), workers.len() + 1);
            let spawned =
                thread::Builder::new().name(format!("keyfold-{id}")).spawn(move || shared.attend(id));
            match spawned {
                Ok(worker) => workers.push(worker),
                Err(_) => break,
            }
        }
        // Threads that could not be had are not asked for again; the others do their tasks.
        self.count.store(wanted, Ordering::Relaxed);
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let workers = self.workers.get_mut().unwrap_or_else(PoisonError::into_inner);
        for worker in workers.drain(..) {
            worker.thread().unpark();
            // A member's panics are caught and given to the caller: there is nothing in the result.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Opens `region`, works on it, and returns when nobody does any more: whether that was long after the caller's own
    /// last task.
    fn lead(&self, region: &Region<'_>) -> bool {
        let start = Instant::now();
        for (id, member) in self.members[..region.members].iter().enumerate() {
            member.next.store(region.first(id), Ordering::Relaxed);
        }
        self.region.store(ptr::from_ref(region).cast_mut().cast(), Ordering::Relaxed);
        let epoch = (self.state.load(Ordering::Relaxed) >> EPOCH_SHIFT) + 1;
        let open = epoch << EPOCH_SHIFT | (region.members as u64) << MEMBERS_SHIFT | OPEN;
        // Ordered before the look at who sleeps, as a sleeper's mark is before its last look at the state.
        self.state.store(open, Ordering::SeqCst);
        for member in &self.members[1..region.members] {
            if member.asleep.load(Ordering::SeqCst)
                && member.asleep.swap(false, Ordering::SeqCst)
                && let Some(thread) = member.thread.get()
            {
                thread.unpark();
            }
        }
        self.take_tasks(region, 0);
        let mut state = self.state.fetch_and(!OPEN, Ordering::AcqRel);
        if state & JOINED == 0 {
            return false;
        }
        let (worked, mut rounds) = (start.elapsed(), 0u32);
        while state & JOINED != 0 {
            // A member may have lost its processor to whoever waits here; but who yields on a busy machine comes back
            // milliseconds later.
            if rounds < 1 << 11 {
                spin_loop()
            } else {
                thread::yield_now()
            }
            rounds = rounds.saturating_add(1);
            state = self.state.load(Ordering::Acquire);
        }
        rounds > 1 << 11 && start.elapsed() > worked + worked.max(LATE)
    }

    /// Does tasks until all are taken, those of member `id` first.
    fn take_tasks(&self, region: &Region<'_>, id: usize) {
        let result = catch_unwind(AssertUnwindSafe(|| {
            for whose in (id..region.members).chain(0..id) {
                let (next, end) = (&self.members[whose].next, region.first(whose + 1));
                loop {
                    let task = next.fetch_add(1, Ordering::Relaxed);
                    if task >= end {
                        break;
                    }
                    (region.work)(task);
                }
            }
        }));
        if let Err(payload) = result {
            region.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
            // The call fails anyway: whoever is still at work may stop after the present task.
            for (id, member) in self.members[..region.members].iter().enumerate() {
                member.next.store(region.first(id + 1), Ordering::Relaxed);
            }
        }
    }

    /// The life of member `id`.
    fn attend(&self, id: usize) {
        let me = &self.members[id];
        // Set once: an id is given to one thread.
        let _ = me.thread.set(thread::current());
        let mut seen = 0;
        while !self.stop.load(Ordering::Relaxed) {
            if self.await_region(id, seen) {
                seen = self.join(id);
                continue;
            }
            me.asleep.store(true, Ordering::SeqCst);
            if !self.calls(id, seen) && !self.stop.load(Ordering::SeqCst) {
                thread::park();
            }
            me.asleep.store(false, Ordering::Relaxed);
        }
    }

    /// Whether a region other than `seen` is open to member `id`.
    fn calls(&self, id: usize, seen: u64) -> bool {
        let state = self.state.load(Ordering::SeqCst);
        state & OPEN != 0 && state >> EPOCH_SHIFT != seen && id < members(state)
    }

    /// Looks for a region; false when patience is at an end.
    fn await_region(&self, id: usize, seen: u64) -> bool {
        let start = Instant::now();
        loop {
            for _ in 0..16 {
                if self.calls(id, seen) {
                    return true;
                }
                spin_loop();
            }
            let waited = start.elapsed();
            if waited > PATIENCE || self.stop.load(Ordering::Relaxed) {
                return false;
            }
            if waited > SPIN {
                thread::yield_now();
            }
        }
    }

    /// Joins the region that is open, if it still is, and works on it; its number.
    fn join(&self, id: usize) -> u64 {
        let joined = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
            (state & OPEN != 0 && id < members(state)).then(|| state + 1)
        });
        match joined {
            Ok(state) => {
                // SAFETY: the caller keeps the region until those who joined have left.
                let region = unsafe { &*self.region.load(Ordering::Relaxed) };
                self.take_tasks(region, id);
                self.state.fetch_sub(1, Ordering::Release);
                state >> EPOCH_SHIFT
            }
            Err(state) => state >> EPOCH_SHIFT,
        }
    }
}

fn members(state: u64) -> usize {
    (state >> MEMBERS_SHIFT) as usize & 0x7f
}

impl Region<'_> {
    /// The first task of member `id`.
    fn first(&self, id: usize) -> usize {
        self.tasks * id / self.members
    }
}
