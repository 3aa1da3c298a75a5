//! One disk's lane: a thread that performs the disk's requests in the order of their release.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use io_gate::host::{Performable, Request};

use crate::backend::disk::Disk;
use crate::core::{Core, POISONED};
use crate::perform;

/// A disk and the thread that works on it.
pub(crate) struct Lane {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Performable>,
    busy: bool,
    stop: bool,
}

impl Lane {
    pub(crate) fn start(name: String, core: Arc<Core>, disk: Disk) -> io::Result<Self> {
        let shared =
            Arc::new(Shared { state: Mutex::new(State::default()), changed: Condvar::new() });
        let work = shared.clone();
        let thread =
            std::thread::Builder::new().name(name).spawn(move || work.run(&core, &disk))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Adds a request; the lane keeps the order in which it is called.
    pub(crate) fn push(&self, request: Performable) {
        self.shared.lock().queue.push_back(request);
        self.shared.changed.notify_all();
    }

    pub(crate) fn is_idle(&self) -> bool {
        let state = self.shared.lock();
        state.queue.is_empty() && !state.busy
    }

    /// Waits until everything pushed so far has been performed.
    pub(crate) fn drain(&self) {
        let state = self.shared.lock();
        let idle = |state: &mut State| state.busy || !state.queue.is_empty();
        drop(self.shared.changed.wait_while(state, idle).expect(POISONED));
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("a disk lane has panicked");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(POISONED)
    }

    fn run(&self, core: &Core, disk: &Disk) {
        while let Some(request) = self.next() {
            perform_one(core, disk, request);
            self.lock().busy = false;
            self.changed.notify_all();
        }
    }

    /// The next request; none when the lane is to stop and nothing is left to perform.
    fn next(&self) -> Option<Performable> {
        let state = self.lock();
        let wait = |state: &mut State| state.queue.is_empty() && !state.stop;
        let mut state = self.changed.wait_while(state, wait).expect(POISONED);
        let request = state.queue.pop_front()?;
        state.busy = true;
        Some(request)
    }
}

fn perform_one(core: &Core, disk: &Disk, request: Performable) {
    // An effect that is not permitted stays in flight for ever: nobody may be told that it
    // happened (P2), and whoever holds the right performs it.
    if matches!(request.record().request, Request::Effect(_)) && !core.permitted() {
        return;
    }
    let (outcome, data) = perform::on_disk(&core.memory, disk, &request);
    core.finish(request, outcome, data);
}
