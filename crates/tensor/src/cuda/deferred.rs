//! Work that is put off until the stream is asked for anything else.

use super::{Gpu, lock};
use std::{
    sync::{Condvar, Mutex, PoisonError},
    thread::{self, ThreadId},
};

#[derive(Default)]
enum State {
    #[default]
    Nothing,
    Waiting(fn(&Gpu)),
    /// By this thread, whose own requests are part of the work.
    Running(ThreadId),
}

/// At most one piece of work; every thread that asks for the stream has it done first, or waits for who does it.
#[derive(Default)]
pub(super) struct Deferred {
    state: Mutex<State>,
    done: Condvar,
}

/// Ends the work, also where it ends by an error.
struct Run<'a>(&'a Deferred);

impl Drop for Run<'_> {
    fn drop(&mut self) {
        *lock(&self.0.state) = State::Nothing;
        self.0.done.notify_all();
    }
}

impl Deferred {
    pub(super) fn put_off(&self, work: fn(&Gpu)) {
        let mut state = lock(&self.state);
        while matches!(*state, State::Running(_)) {
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        *state = State::Waiting(work);
    }

    pub(super) fn run(&self, gpu: &Gpu) {
        let mut state = lock(&self.state);
        loop {
            match *state {
                State::Nothing => return,
                State::Running(thread) if thread == thread::current().id() => return,
                State::Running(_) => state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner),
                State::Waiting(work) => {
                    *state = State::Running(thread::current().id());
                    drop(state);
                    let _run = Run(self);
                    gpu.bind();
                    return work(gpu);
                }
            }
        }
    }
}
