//! One backend's lane: a thread that performs the backend's effects in the order of their release.
//!
//! No thread that runs device code writes to a descriptor: it hands what may leave to a lane (P5).
//! A batch is handed over with at most one wake-up, however many requests it has.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use io_gate::Outcome;
use io_gate::host::{Performable, Request};

use crate::backend::Sink;
use crate::clock::Moment;
use crate::completion::{Completion, Kind, Performed};
use crate::core::{Core, POISONED, Permit, is_stale};
use crate::observer::Noted;

/// Called by each lane's thread before it does anything else: the place to give up rights.
pub type LaneStart = Arc<dyn Fn() + Send + Sync>;

/// A disk's request that took longer than this is told of at once; what is done faster is told of
/// together, so that the device thread is woken, and the driver interrupted, once.
const PROMPT: Duration = Duration::from_micros(50);

/// What a lane is asked to do.
#[derive(Debug)]
pub(crate) enum Job {
    /// Perform a request.
    Perform(Performable),
    /// The driver has accepted these features.
    Negotiated(u64),
    /// The backend needs attention of its own: the rest of its output, a connection.
    Attend,
    /// Tell the network where the guest's address is.
    Announce,
    /// The machine ends in good order: wait a while for what is queued to be taken.
    Finish,
}

/// A backend's thread.
pub(crate) struct Lane {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// The lane waits on it for work.
    work: Condvar,
    /// Others wait on it for the lane to be idle.
    idle: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    busy: bool,
    stop: bool,
    /// Whether the lane waits: waking it is a system call, and is left out when it does not.
    waits: bool,
    drainers: usize,
}

impl State {
    fn is_idle(&self) -> bool {
        self.queue.is_empty() && !self.busy
    }
}

impl Lane {
    pub(crate) fn start(
        name: String,
        core: Arc<Core>,
        sink: Arc<Sink>,
        start: LaneStart,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::default()),
            work: Condvar::new(),
            idle: Condvar::new(),
        });
        let work = shared.clone();
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            start();
            work.run(&core, &sink);
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Adds jobs; the lane keeps the order in which it is called.
    pub(crate) fn push(&self, jobs: impl IntoIterator<Item = Job>) {
        let mut state = self.shared.lock();
        state.queue.extend(jobs);
        let wake = state.waits && !state.queue.is_empty();
        // Cleared by whoever wakes it, so that a second batch before it runs costs no wake-up.
        state.waits &= !wake;
        drop(state);
        if wake {
            self.shared.work.notify_one();
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.shared.lock().is_idle()
    }

    /// Waits until everything pushed so far has been done.
    pub(crate) fn drain(&self) {
        let mut state = self.shared.lock();
        state.drainers += 1;
        let mut state =
            self.shared.idle.wait_while(state, |state| !state.is_idle()).expect(POISONED);
        state.drainers -= 1;
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("a lane has panicked");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(POISONED)
    }

    fn run(&self, core: &Core, sink: &Sink) {
        let mut jobs = VecDeque::new();
        let mut done = Vec::new();
        let mut permit = Permit::default();
        while self.next(&mut jobs) {
            let mut told = Instant::now();
            for job in jobs.drain(..) {
                done.extend(do_one(core, sink, &mut permit, job));
                // Frames are always finished as a batch.
                if sink.is_slow() && told.elapsed() >= PROMPT {
                    core.post_all(&mut done);
                    told = Instant::now();
                }
            }
            core.post_all(&mut done);
        }
    }

    /// Takes what there is to do; `false` when the lane is to stop and nothing is left.
    fn next(&self, jobs: &mut VecDeque<Job>) -> bool {
        let mut state = self.lock();
        state.busy = false;
        if state.queue.is_empty() && state.drainers > 0 {
            self.idle.notify_all();
        }
        while state.queue.is_empty() && !state.stop {
            state.waits = true;
            state = self.work.wait(state).expect(POISONED);
        }
        state.waits = false;
        std::mem::swap(jobs, &mut state.queue);
        state.busy = !jobs.is_empty();
        state.busy
    }
}

/// Does one job; gives what a descriptor chain waits for.
fn do_one(core: &Core, sink: &Sink, permit: &mut Permit, job: Job) -> Option<Completion> {
    // P2: asked before each effect, unless the last yes is still good. One that is not permitted stays in flight for ever:
    // nobody may be told that it happened, and whoever holds the right performs it.
    if job.reaches_out() && !permit.holds(core) {
        return None;
    }
    match job {
        Job::Perform(request) => {
            let (outcome, data) = perform(core, sink, &request)?;
            let done = core.settle_detached(Performed { request, outcome, data })?;
            return Some(Completion(Kind::Performed(done)));
        }
        Job::Negotiated(features) => sink.negotiated(features),
        Job::Attend => sink.attend(),
        Job::Announce => sink.announce(),
        Job::Finish => sink.finish(),
    }
    None
}

/// Performs a request, and tells the observer of an effect before it happens: what is performed
/// is on the record by then. None when it is not permitted any more.
fn perform(core: &Core, sink: &Sink, request: &Performable) -> Option<(Outcome, Vec<u8>)> {
    let Some(observer) = core.observer() else { return sink.perform(core, request) };
    let Some(effect) = Noted::of(request.record()) else { return sink.perform(core, request) };
    let permitted = Moment::now();
    if !observer.performing(effect, request.is_replay(), core.term()) {
        return None;
    }
    // P2: this process may have been stopped while it told.
    let performed =
        if is_stale(permitted) && !core.permitted() { None } else { sink.perform(core, request) };
    if performed.is_none() {
        observer.withheld(effect);
    }
    performed
}

impl Job {
    /// Whether it may let something out, so that the fence has to be asked.
    fn reaches_out(&self) -> bool {
        match self {
            Self::Perform(request) => matches!(request.record().request, Request::Effect(_)),
            Self::Attend | Self::Announce | Self::Finish => true,
            Self::Negotiated(_) => false,
        }
    }
}
