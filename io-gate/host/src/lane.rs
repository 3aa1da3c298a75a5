//! One backend's lane: a thread that performs the backend's effects in the order of their release.
//!
//! Threads that run device code do not write to descriptors: they append released effects to a
//! lane's queue (P5). A batch needs at most one wake-up, whatever its size.
//!
//! A lane may hang in a system call (a dead file server, a stopped reader), or wait for an
//! unreachable arbiter. So only the lane uses its backend's [`Output`], and it holds no lock while
//! it performs. Each wait for a lane has a time limit (P9), except that of a new session for
//! [`Lane::write_through`].

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use io_gate::PowerEvent;
use io_gate::host::{EffectOp, InputOp, Origin, OwnOp, Performable, Request};

use crate::asks::Asks;
use crate::backend::output::Output;
use crate::far_side::FarSide;
use crate::given_up::GivenUp;
use crate::poisoned::POISONED;
use crate::work::Work;

/// Each lane's thread calls it first, to give up rights.
pub type LaneStart = Arc<dyn Fn() + Send + Sync>;

/// A disk request that took longer than this is reported at once. Faster ones are reported
/// together, so that they wake the device thread and interrupt the driver once.
const PROMPT: Duration = Duration::from_micros(50);
/// How long a thread that drops a lane waits for it. A lane that is still busy then is left behind,
/// and ends with the process.
const LAST_CALL: Duration = Duration::from_secs(2);

/// A lane's job, and how far the lane has come with it. Two equal values at different times mean
/// that the lane has made no progress between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneJob {
    /// The name of the lane's thread.
    pub lane: String,
    /// When the job began.
    pub begun: Instant,
    /// Number of permits that the lane has asked for so far: one for each call that lets data out.
    pub permits: u64,
}

/// A backend's thread.
pub(crate) struct Lane {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    /// Guards the lane's list of work only. Never held across a system call that reaches the
    /// outside, nor while the fence is asked: the device thread, the vCPU threads and the link's
    /// thread take it.
    state: Mutex<State>,
    /// The lane waits here for work.
    work: Condvar,
    /// Other threads wait here for the lane's progress.
    idle: Condvar,
    /// Whether the current request is given up; checked before each system call that lets data out.
    given_up: GivenUp,
}

/// The work of a lane. Work that need not be repeated is a flag: asking for it twice takes no more
/// room than once (P9).
#[derive(Default)]
struct State {
    /// At most all requests that the gate has released and that are not settled (P9).
    queue: VecDeque<Performable>,
    /// The backend needs attention: the rest of its output, a connection, or the driver's features.
    attend: bool,
    /// Announce the guest's address to the network.
    announce: bool,
    /// Make later writes durable when they complete, and sync earlier ones. The result goes to this
    /// sender (P3).
    write_through: Option<SyncSender<io::Result<()>>>,
    /// The machine ends in good order. The backend has until this time to take its queued output.
    finish: Option<Instant>,
    stop: bool,
    ended: bool,
    /// The job that the lane is doing.
    current: Option<Current>,
    /// When the lane began that job, or when it was idle and got work: its thread may hang before
    /// it takes the work.
    begun: Option<Instant>,
    /// Whether the lane waits for work. Only then is it woken, since waking is a system call.
    waits: bool,
    /// Number of threads that wait for the lane's progress.
    waiters: usize,
}

/// The properties of the job that a lane is doing.
#[derive(Clone, Copy)]
struct Current {
    /// Whether a descriptor chain waits for it.
    chain: bool,
    /// Whether it lets data out.
    effect: bool,
    /// Whether performing it reads guest memory.
    borrows: bool,
    /// Whether it resets the machine.
    resets: bool,
    /// Whether it is an operation on an own disk: it reaches no other host, and a reset of the
    /// device does not take it back (R10).
    own: bool,
}

impl Current {
    const OTHER: Self =
        Self { chain: false, effect: false, borrows: false, resets: false, own: false };

    fn of(request: &Performable) -> Self {
        let own = matches!(request.record().request, Request::Own(_));
        let chain = !own && matches!(request.record().origin, Origin::Chain { .. });
        let borrows = match &request.record().request {
            Request::Effect(op) | Request::Own(OwnOp { op, .. }) => {
                let ranges = op.payload().and_then(|payload| payload.guest_ranges());
                request.copy().is_none() && ranges.is_some()
            }
            // A read goes to memory of the lane. The device thread copies it into guest memory.
            Request::Input(InputOp::BlockRead { .. } | InputOp::Entropy { .. }) => false,
        };
        let reset = Request::Effect(EffectOp::Power(PowerEvent::Reset));
        let effect = !matches!(request.record().request, Request::Input(_));
        Self { chain, effect, borrows, resets: request.record().request == reset, own }
    }
}

/// The next job of a lane.
enum Job {
    Perform(Performable),
    Attend,
    Announce,
    WriteThrough(SyncSender<io::Result<()>>),
    Finish(Instant),
}

impl State {
    fn has_work(&self) -> bool {
        let asked = self.attend || self.announce || self.write_through.is_some();
        asked || !self.queue.is_empty() || self.finish.is_some()
    }

    fn is_idle(&self) -> bool {
        !self.has_work() && self.current.is_none()
    }

    fn take(&mut self) -> Option<Job> {
        if std::mem::take(&mut self.attend) {
            return Some(Job::Attend);
        }
        if std::mem::take(&mut self.announce) {
            return Some(Job::Announce);
        }
        if let Some(answer) = self.write_through.take() {
            return Some(Job::WriteThrough(answer));
        }
        let next = self.queue.pop_front().map(Job::Perform);
        next.or_else(|| self.finish.take().map(Job::Finish))
    }
}

impl Lane {
    pub(crate) fn start(
        name: String,
        far_side: Arc<FarSide>,
        output: Output,
        start: LaneStart,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::default()),
            work: Condvar::new(),
            idle: Condvar::new(),
            given_up: GivenUp::default(),
        });
        let work = shared.clone();
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            start();
            let _end = End(&work);
            work.run(&far_side, output);
        });
        let thread = thread.map_err(|error| {
            io::Error::new(error.kind(), format!("cannot start the thread of a lane: {error}"))
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Appends requests. The lane performs them in the order of the calls.
    pub(crate) fn push(&self, requests: impl IntoIterator<Item = Performable>) {
        self.shared.tell(|state| state.queue.extend(requests));
    }

    /// Asks the lane to attend to its backend.
    pub(crate) fn attend(&self) {
        self.shared.tell(|state| state.attend = true);
    }

    /// Asks the lane to announce the guest's address.
    pub(crate) fn announce(&self) {
        self.shared.tell(|state| state.announce = true);
    }

    /// Asks the lane to make later writes durable when they complete, and to sync earlier ones. If
    /// an earlier requester has no answer yet, it gets none.
    pub(crate) fn write_through(&self, answer: SyncSender<io::Result<()>>) {
        self.shared.tell(|state| state.write_through = Some(answer));
    }

    /// Tells the lane that the machine ends in good order. The backend has until `until` to take
    /// its queued output.
    pub(crate) fn finish(&self, until: Instant) {
        self.shared.tell(|state| state.finish = Some(until));
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.shared.lock().is_idle()
    }

    /// Whether the lane performs an effect and does not wait for the fence: it may be in a system
    /// call that reaches the outside.
    pub(crate) fn may_be_letting_out(&self, asks: &Asks) -> bool {
        let lets_out = |current: Current| current.effect && !current.own;
        let at_effect = self.shared.lock().current.is_some_and(lets_out);
        let thread = self.thread.as_ref().map(|thread| thread.thread().id());
        at_effect && !thread.is_some_and(|thread| asks.is_asked_by(thread))
    }

    /// The job that the lane is doing, or the first one that waits for an idle lane's thread.
    /// `None` while the lane has no work.
    pub(crate) fn busy_with(&self) -> Option<LaneJob> {
        let begun = self.shared.lock().begun?;
        let name = self.thread.as_ref().and_then(|thread| thread.thread().name());
        let permits = self.shared.given_up.permits();
        Some(LaneJob { lane: name.unwrap_or_default().to_owned(), begun, permits })
    }

    /// Waits until the lane has no work left, at most until `until`. Returns whether it has none.
    pub(crate) fn drain(&self, until: Instant) -> bool {
        self.shared.wait(until, State::is_idle)
    }

    /// Removes and returns the reads that have not begun, since the driver owns their memory again.
    /// A read that has begun uses the lane's own memory.
    pub(crate) fn give_up_reads(&self) -> Vec<Performable> {
        self.shared.take_out(&mut self.shared.lock(), |of| !of.effect)
    }

    /// Waits until no effect of a descriptor chain is left, at most until `until`.
    pub(crate) fn wait_for_effects(&self, until: Instant) {
        self.shared.wait(until, |state| {
            let queued = state.queue.iter().map(Current::of);
            !queued.chain(state.current).any(|of| of.chain && of.effect)
        });
    }

    /// Removes and returns the requests of chains that have not begun, since the driver owns their
    /// memory again. If a request of a chain has begun, the lane is told to give it up.
    pub(crate) fn give_up_chains(&self) -> Vec<Performable> {
        self.give_up(|of| of.chain)
    }

    /// As [`give_up_chains`](Self::give_up_chains), for resets of the machine.
    pub(crate) fn give_up_resets(&self) -> Vec<Performable> {
        self.give_up(|of| of.resets)
    }

    fn give_up(&self, which: impl Fn(Current) -> bool) -> Vec<Performable> {
        let mut state = self.shared.lock();
        if state.current.is_some_and(&which) {
            self.shared.given_up.set();
        }
        self.shared.take_out(&mut state, which)
    }

    /// Waits until the lane no longer reads guest memory for a request of a chain, at most until
    /// `until`. Returns whether it no longer does.
    pub(crate) fn lets_go_of_memory(&self, until: Instant) -> bool {
        self.shared.wait(until, |state| {
            !state.current.is_some_and(|current| current.chain && current.borrows)
        })
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.shared.tell(|state| state.stop = true);
        let ended = self.shared.wait(Instant::now() + LAST_CALL, |state| state.ended);
        if let Some(thread) = self.thread.take() {
            let name = thread.thread().name().unwrap_or_default().to_owned();
            if !ended {
                log::error!(
                    "lane {name}: still in a system call, or waiting for the arbiter: not waited for any longer"
                );
            } else if thread.join().is_err() {
                log::error!("lane {name} has panicked");
            }
        }
    }
}

/// Wakes the waiting threads when the lane's thread ends, even by a panic.
struct End<'s>(&'s Shared);

impl Drop for End<'_> {
    fn drop(&mut self) {
        // A panic of this thread may have poisoned the lock. Then the waiting threads panic too.
        if let Ok(mut state) = self.0.state.lock() {
            state.ended = true;
            state.current = None;
            state.begun = None;
        }
        self.0.idle.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(POISONED)
    }

    fn take_out(&self, state: &mut State, which: impl Fn(Current) -> bool) -> Vec<Performable> {
        let queue = std::mem::take(&mut state.queue);
        let (taken, others) =
            queue.into_iter().partition::<VecDeque<_>, _>(|request| which(Current::of(request)));
        state.queue = others;
        // The lane may have had no other work: it is idle again, although its thread has taken
        // nothing.
        if state.is_idle() {
            state.begun = None;
        }
        taken.into()
    }

    fn tell(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        let was_idle = state.is_idle();
        change(&mut state);
        if was_idle && state.has_work() {
            state.begun = Some(Instant::now());
        }
        let wake = state.waits && (state.has_work() || state.stop);
        // The waking thread clears it. So a second batch costs no wake-up if the lane has not run
        // yet.
        state.waits &= !wake;
        drop(state);
        if wake {
            self.work.notify_one();
        }
    }

    fn wait(&self, until: Instant, done: impl Fn(&State) -> bool) -> bool {
        let mut state = self.lock();
        state.waiters += 1;
        loop {
            if done(&state) {
                break;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.idle.wait_timeout(state, left).expect(POISONED).0;
        }
        state.waiters -= 1;
        done(&state)
    }

    fn run(&self, far_side: &FarSide, mut output: Output) {
        let mut work = Work::new(far_side, &self.given_up);
        // Number of jobs to finish before the next report to the device thread.
        let mut left = 0_usize;
        let mut reported_at = Instant::now();
        loop {
            let (job, queued) = match self.take() {
                Some(taken) => taken,
                None => {
                    work.post();
                    if !self.sleep() {
                        return;
                    }
                    reported_at = Instant::now();
                    continue;
                }
            };
            output.run(&mut work, job);
            work.permits.end();
            left = if left == 0 { queued } else { left - 1 };
            // Only disk requests are reported early. All others are always reported as a batch.
            let prompt = output.is_slow() && reported_at.elapsed() >= PROMPT;
            if left == 0 || prompt {
                work.post();
                reported_at = Instant::now();
            }
        }
    }

    /// Takes the next job. Returns it with the number of requests that are queued behind it.
    fn take(&self) -> Option<(Job, usize)> {
        let mut state = self.lock();
        let job = state.take()?;
        let current = match &job {
            Job::Perform(request) => Current::of(request),
            _ => Current::OTHER,
        };
        self.is_at(&mut state, Some(current));
        Some((job, state.queue.len()))
    }

    fn is_at(&self, state: &mut State, current: Option<Current>) {
        state.current = current;
        state.begun = current.map(|_| Instant::now());
        // The former request is over. Its mark must not give up the next one.
        self.given_up.clear();
        if state.waiters > 0 {
            self.idle.notify_all();
        }
    }

    /// Waits for work. All performed requests have been reported. Returns `false` when the lane
    /// must stop and has nothing left to do.
    fn sleep(&self) -> bool {
        let mut state = self.lock();
        self.is_at(&mut state, None);
        while !state.has_work() {
            if state.stop {
                return false;
            }
            state.waits = true;
            state = self.work.wait(state).expect(POISONED);
        }
        state.waits = false;
        true
    }
}

impl Output {
    /// Does one job. Called by the lane.
    fn run(&mut self, work: &mut Work<'_>, job: Job) {
        match job {
            Job::Perform(request) => self.perform(work, request),
            Job::Attend => self.attend(work),
            Job::Announce => self.announce(work),
            // The requester may have gone.
            Job::WriteThrough(answer) => drop(answer.send(self.write_through(work))),
            Job::Finish(until) => self.finish(work, until),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use io_gate::host::{Term, new_gate};
    use io_gate::{BlockFlush, Port};

    use super::*;

    /// P9. Fails if a lane counts as busy after its work was taken back before it began: then it
    /// would be reported as hanging.
    #[test]
    fn p9_a_lane_whose_work_is_taken_back_is_idle() {
        let (mut ledger, mut authority) = new_gate();
        let origin = Origin::Chain { slot: 0, queue: 0, head: 0 };
        let staged =
            ledger.chain_session(origin, |gate| Ok(gate.token::<BlockFlush>().stage(Port(0))));
        assert!(staged.is_ok());
        let released = ledger.run_alone(authority.alone(Term(1)));
        // No thread runs for this lane, as if the thread had not woken up yet.
        let shared = Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            idle: Condvar::new(),
            given_up: GivenUp::default(),
        };
        shared.tell(|state| state.queue.extend(released));
        assert!(shared.lock().begun.is_some());
        let taken = shared.take_out(&mut shared.lock(), |of| of.chain);
        assert_eq!(taken.len(), 1);
        assert_eq!(shared.lock().begun, None);
    }
}
