//! One backend's lane: a thread that performs the backend's effects in the order of their release.
//!
//! No thread that runs device code writes to a descriptor: it hands what may leave to a lane (P5).
//! A batch is handed over with at most one wake-up, however many requests it has.
//!
//! A lane may be in a system call that does not end (a dead file server, a reader that has stopped), or wait for an arbiter
//! that is away. So the lane owns its backend's output ([`Output`]) alone, no lock is held while it performs, and whoever
//! waits for it waits for so long at most (P9).

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use io_gate::PowerEvent;
use io_gate::host::{EffectOp, InputOp, Origin, Performable, Request};

use crate::asks::Asks;
use crate::backend::output::Output;
use crate::backend::work::Work;
use crate::core::Core;
use crate::given_up::GivenUp;
use crate::poisoned::POISONED;

/// Called by each lane's thread before it does anything else: the place to give up rights.
pub type LaneStart = Arc<dyn Fn() + Send + Sync>;

/// A disk's request that took longer than this is told of at once; what is done faster is told of
/// together, so that the device thread is woken, and the driver interrupted, once.
const PROMPT: Duration = Duration::from_micros(50);
/// How long whoever takes a machine apart waits for a lane, which is left behind then: it goes with the process.
const LAST_CALL: Duration = Duration::from_secs(2);

/// A backend's thread.
pub(crate) struct Lane {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    /// Guards the queue only: never held across a system call that reaches the outside, nor while the fence is asked.
    /// The device thread, vCPU threads and the link's thread take it.
    state: Mutex<State>,
    /// The lane waits on it for work.
    work: Condvar,
    /// Others wait on it for the lane to have done something.
    idle: Condvar,
    /// Whether what the lane is at is not wanted any more: looked at before each system call that lets something out.
    given_up: GivenUp,
}

/// What a lane is to do. What need not be done twice is not queued: however often it is asked for, it takes no more room (P9).
#[derive(Default)]
struct State {
    /// As many as the gate has released and not seen settled.
    queue: VecDeque<Performable>,
    /// The backend needs attention of its own: the rest of its output, a connection, the driver's features.
    attend: bool,
    /// Tell the network where the guest's address is.
    announce: bool,
    /// Writes are to be durable from now on, and those before; who asked is told (P3).
    write_through: Option<SyncSender<io::Result<()>>>,
    /// The machine ends in good order: until then what is queued may be taken.
    finish: Option<Instant>,
    stop: bool,
    ended: bool,
    /// What the lane is at.
    current: Option<Current>,
    /// Whether the lane waits: waking it is a system call, and is left out when it does not.
    waits: bool,
    waiters: usize,
}

/// What a lane is at.
#[derive(Clone, Copy)]
struct Current {
    /// Whether a descriptor chain waits for it.
    chain: bool,
    /// Whether it lets something out.
    effect: bool,
    /// Whether its bytes are read from the guest's memory while it is performed.
    borrows: bool,
    /// Whether it resets the machine.
    resets: bool,
}

impl Current {
    const OTHER: Self = Self { chain: false, effect: false, borrows: false, resets: false };

    fn of(request: &Performable) -> Self {
        let chain = matches!(request.record().origin, Origin::Chain { .. });
        let borrows = match &request.record().request {
            Request::Effect(op) => {
                let ranges = op.payload().and_then(|payload| payload.guest_ranges());
                request.copy().is_none() && ranges.is_some()
            }
            // What it brings is the lane's until the device thread copies it.
            Request::Input(InputOp::BlockRead { .. } | InputOp::Entropy { .. }) => false,
        };
        let reset = Request::Effect(EffectOp::Power(PowerEvent::Reset));
        let effect = matches!(request.record().request, Request::Effect(_));
        Self { chain, effect, borrows, resets: request.record().request == reset }
    }
}

/// What a lane does next.
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
        core: Arc<Core>,
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
            work.run(&core, output);
        });
        let thread = thread.map_err(|error| {
            io::Error::new(error.kind(), format!("no thread for a device's lane: {error}"))
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Adds requests; the lane keeps the order in which it is called.
    pub(crate) fn push(&self, requests: impl IntoIterator<Item = Performable>) {
        self.shared.tell(|state| state.queue.extend(requests));
    }

    /// The backend needs attention of its own.
    pub(crate) fn attend(&self) {
        self.shared.tell(|state| state.attend = true);
    }

    /// The network is to be told where the guest's address is.
    pub(crate) fn announce(&self) {
        self.shared.tell(|state| state.announce = true);
    }

    /// Writes are to be durable from now on, and those before. Whoever asked earlier and has no answer yet gets none.
    pub(crate) fn write_through(&self, answer: SyncSender<io::Result<()>>) {
        self.shared.tell(|state| state.write_through = Some(answer));
    }

    /// The machine ends in good order; until then what is queued may be taken.
    pub(crate) fn finish(&self, until: Instant) {
        self.shared.tell(|state| state.finish = Some(until));
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.shared.lock().is_idle()
    }

    /// Whether the lane is at an effect, and does not ask the fence for it: it may be in a system call that reaches the outside.
    pub(crate) fn may_be_letting_out(&self, asks: &Asks) -> bool {
        let at_effect = self.shared.lock().current.is_some_and(|current| current.effect);
        let thread = self.thread.as_ref().map(|thread| thread.thread().id());
        at_effect && !thread.is_some_and(|thread| asks.is_asked_by(thread))
    }

    /// Waits until everything asked for so far has been done, no longer than `until`; whether it has.
    pub(crate) fn drain(&self, until: Instant) -> bool {
        self.shared.wait(until, State::is_idle)
    }

    /// The driver owns its memory again: gives back the reads that were not begun. One that was brings its bytes to the lane's
    /// own memory.
    pub(crate) fn give_up_reads(&self) -> Vec<Performable> {
        self.shared.take_out(&mut self.shared.lock(), |of| !of.effect)
    }

    /// Waits until no effect of a descriptor chain is left, no longer than `until`.
    pub(crate) fn wait_for_effects(&self, until: Instant) {
        self.shared.wait(until, |state| {
            let queued = state.queue.iter().map(Current::of);
            !queued.chain(state.current).any(|of| of.chain && of.effect)
        });
    }

    /// The driver owns its memory again: gives back the requests of its chains that were not begun, and has the lane give up
    /// the one that it is at, if it is one of them.
    pub(crate) fn give_up_chains(&self) -> Vec<Performable> {
        self.give_up(|of| of.chain)
    }

    /// As [`give_up_chains`](Self::give_up_chains), of resets of the machine.
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

    /// Waits until the lane reads no bytes from the guest's memory for a request that was given up, no longer than `until`;
    /// whether that is so.
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
                    "lane {name}: still in a system call, or without an answer of the arbiter: left behind"
                );
            } else if thread.join().is_err() {
                log::error!("lane {name} has panicked");
            }
        }
    }
}

/// Tells those who wait that the lane has ended, however.
struct End<'s>(&'s Shared);

impl Drop for End<'_> {
    fn drop(&mut self) {
        // Poisoned by a panic of this very thread, perhaps: then nobody waits on.
        if let Ok(mut state) = self.0.state.lock() {
            state.ended = true;
            state.current = None;
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
        taken.into()
    }

    fn tell(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        let wake = state.waits && (state.has_work() || state.stop);
        // Cleared by whoever wakes it, so that a second batch before it runs costs no wake-up.
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

    fn run(&self, core: &Core, mut output: Output) {
        let mut work = Work::new(core, &self.given_up);
        // Told of together: what is queued when the last was told of.
        let mut left = 0_usize;
        let mut told = Instant::now();
        loop {
            let (job, queued) = match self.take() {
                Some(taken) => taken,
                None => {
                    work.post();
                    if !self.sleep() {
                        return;
                    }
                    told = Instant::now();
                    continue;
                }
            };
            output.run(&mut work, job);
            work.permits.end();
            left = if left == 0 { queued } else { left - 1 };
            // Frames are always finished as a batch.
            let prompt = output.is_slow() && told.elapsed() >= PROMPT;
            if left == 0 || prompt {
                work.post();
                told = Instant::now();
            }
        }
    }

    /// The next job, and how many are behind it.
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
        // What was given up is over.
        self.given_up.clear();
        if state.waiters > 0 {
            self.idle.notify_all();
        }
    }

    /// Waits for something to do, with all that was done told of; `false` when the lane is to stop and nothing is left.
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
    /// Does one job. Lane.
    fn run(&mut self, work: &mut Work<'_>, job: Job) {
        match job {
            Job::Perform(request) => self.perform(work, request),
            Job::Attend => self.attend(work),
            Job::Announce => self.announce(work),
            // Whoever has asked may have gone.
            Job::WriteThrough(answer) => drop(answer.send(self.write_through(work))),
            Job::Finish(until) => self.finish(work, until),
        }
    }
}
