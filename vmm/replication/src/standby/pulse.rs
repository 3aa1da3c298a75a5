//! Signs of life while the standby's thread is busy.
//!
//! Checking, applying and hashing a large checkpoint takes long. A primary that hears nothing for
//! that long would take its standby for dead.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kemari_confine::seccomp::Role;
use kemari_confine::threads;

use crate::link::Link;

/// A thread that repeats one frame. In the meantime no other thread writes to the link.
#[derive(Default)]
pub(super) struct Pulse(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    work: Option<Work>,
    /// Whether the thread sleeps until it is woken: an idle standby costs almost nothing.
    asleep: bool,
    /// Number of times that work has begun.
    given: u64,
    over: bool,
}

struct Work {
    link: Link,
    frame: Vec<u8>,
    begun: Instant,
    beat: Instant,
}

impl Pulse {
    /// Starts the thread. It sends a sign of life each `interval`, for at most `patience`: work
    /// that takes longer has gone wrong, and the primary must notice.
    ///
    /// # Errors
    /// When the process is out of threads.
    pub(super) fn start(interval: Duration, patience: Duration) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let thread = shared.clone();
        threads::start("pulse", Role::LinkSender, move || {
            thread.run(interval, patience);
        })?;
        Ok(Self(shared))
    }

    /// Starts to repeat `frame`. It is first sent after one interval.
    pub(super) fn give(&self, link: Link, frame: Vec<u8>) {
        let now = Instant::now();
        let mut state = self.0.lock();
        state.given += 1;
        state.work = Some(Work { link, frame, begun: now, beat: now });
        if state.asleep {
            self.0.changed.notify_all();
        }
    }

    /// Stops repeating. When this returns, no frame is being written.
    pub(super) fn stop(&self) {
        self.0.lock().work = None;
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.0.lock().over = true;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn run(&self, interval: Duration, patience: Duration) {
        let mut state = self.lock();
        while !state.over {
            if let Some(work) = &mut state.work
                && work.beat.elapsed() >= interval
                && work.begun.elapsed() <= patience
            {
                work.beat = Instant::now();
                // The link's reader reports a broken link.
                let _ = work.link.write_all(&work.frame);
            }
            // New work does not wake this thread while it waits here: most work is done before this
            // thread would run.
            let before = state.given;
            state = self
                .changed
                .wait_timeout(state, interval)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            state = self.sleep(state, before);
        }
    }

    /// Sleeps until there is work. Returns at once if work has begun since `before` was read.
    fn sleep<'s>(&self, mut state: MutexGuard<'s, State>, before: u64) -> MutexGuard<'s, State> {
        while state.work.is_none() && state.given == before && !state.over {
            state.asleep = true;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.asleep = false;
        state
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
