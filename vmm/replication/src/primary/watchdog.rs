//! The watchdog: detects a machine that makes no progress (P7).
//!
//! Progress means that the guest's output can leave. Signs of life from a machine whose devices are
//! stuck would keep its standby from taking over.
//!
//! The device thread runs the devices and ends epochs. To end one it waits for every vCPU and for
//! the engine's state: if one of them is stuck, the device thread stops calling
//! [`Watchdog::looked`]. The watchdog's thread takes no lock and wakes the device thread
//! repeatedly. After `--stall-timeout` without a call, no thread sends signs of life any more, and
//! the core, once told, lets the standby take over. This machine is then fenced like any other:
//! each effect asks before it is performed, and the thread `term` asks for machines that have no
//! output or are stuck ([`Engine::look_at_term`]).
//!
//! The watchdog also watches whether lanes get an answer when they ask if this machine may perform.
//! A look at the fence has no later effect, so the standby may take over while a lane hangs there.
//!
//! Any other call in which a lane hangs is a system call on this machine's own storage or network.
//! It cannot be cancelled, and its write may still arrive later, over data that another machine has
//! written (P2). So the standby is not asked to take over. The status says `stalled` and names the
//! lane (P9), and the operator decides.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use ft_core::primary::Event;
use io_gate_host::{LaneJob, Permission};
use kemari_confine::seccomp::{self, Role};
use kemari_machine::Ended;

use super::Engine;

/// Looks per time-out. Looks are counted instead of time: a process that was stopped for a while
/// has not made progress either.
const LOOKS: u32 = 8;
/// A look at the fence that takes this long hangs. The limit is longer than a standby needs to find
/// and report that it cannot ask the arbiter either ([`crate::standby::resources`]): then this
/// machine waits for the arbiter, as its standby would.
const LONGEST_LOOK: Duration = Duration::from_secs(15);
/// A lane that makes no progress for this long hangs. Storage that answers at all answers sooner.
const LONGEST_CALL: Duration = Duration::from_secs(15);
/// How often this machine asks whether another one has replaced it, apart from the question before
/// each effect.
const TERM_LOOK: Duration = Duration::from_millis(500);

/// The state that an engine's threads share with its watchdog.
#[derive(Debug, Default)]
pub(super) struct Watchdog {
    looks: AtomicU64,
    stalled: AtomicBool,
    /// A lane has asked whether this machine may perform effects, and has no answer.
    look_hangs: AtomicBool,
    /// Why a lane hangs. The lock guards only the text and is never held across a call that blocks.
    hanging_lane: Mutex<Option<String>>,
    /// Why the machine will make no more progress.
    failed: OnceLock<String>,
}

impl Watchdog {
    /// Called by the device thread when it has looked for work and has locked the engine's state.
    pub(super) fn looked(&self) {
        self.looks.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the machine makes no progress.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Acquire) || self.failed.get().is_some()
    }

    /// Whether the standby should take over if it can, because no effect leaves this machine.
    pub(super) fn look_hangs(&self) -> bool {
        self.look_hangs.load(Ordering::Acquire)
    }

    /// Why no output leaves although the machine makes progress: a lane hangs.
    pub(super) fn lane_hangs(&self) -> Option<String> {
        self.hanging_lane().clone()
    }

    fn hanging_lane(&self) -> MutexGuard<'_, Option<String>> {
        self.hanging_lane.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that the machine has failed: waiting for progress is useless.
    pub(super) fn has_failed(&self, why: &str) {
        // Only the first reason counts.
        let _ = self.failed.set(format!("the machine has failed: {why}"));
    }
}

impl Engine {
    /// Why the machine counts as stalled.
    pub(super) fn stall_reason(&self) -> String {
        if let Some(failed) = self.watchdog.failed.get() {
            return failed.clone();
        }
        if !self.watchdog.is_stalled() && self.watchdog.look_hangs() {
            return format!(
                "no answer for {:?} whether this machine may perform effects: look for an arbiter's directory, or the \
                 storage of a disk's fence record, that does not answer",
                LONGEST_LOOK.max(self.options.stall_timeout)
            );
        }
        format!(
            "the devices, a vCPU or the engine have made no progress for {:?} (--stall-timeout)",
            self.options.stall_timeout
        )
    }

    /// The thread `watchdog`. It ends when the engine is dropped.
    pub(super) fn watch_on(engine: Weak<Self>) {
        let Some((wakes, every)) = engine
            .upgrade()
            .map(|engine| (engine.machine.wakes(), engine.options.stall_timeout / LOOKS))
        else {
            return;
        };
        seccomp::enter(Role::Timer, &wakes);
        watch(&engine, every);
    }

    /// Takes no lock before every thread that sends signs of life knows of the stall.
    fn found(self: &Arc<Self>, stalled: bool) {
        self.watchdog.stalled.store(stalled, Ordering::Release);
        if stalled {
            log::error!("{}: handing the guest to the standby", self.stall_reason());
        }
        self.tell_core();
    }

    /// Makes the core handle the change before any other event. In another thread, because the
    /// engine's lock may be held by the stuck one.
    fn tell_core(self: &Arc<Self>) {
        let engine = self.clone();
        let failed = |error| log::error!("cannot report the stall: {error}");
        self.launcher.launch("stall", move || engine.event(Event::Tick), failed);
    }

    /// The thread `term`. P2: ends a machine that another one has replaced, even when it has
    /// nothing to perform: an idle guest would continue beside its successor, and read a disk that
    /// the successor writes.
    pub(super) fn look_at_term(engine: Weak<Self>) {
        let arbiter = engine.upgrade().and_then(|engine| engine.arbiter.clone());
        let Some(fence) = arbiter.map(|arbiter| arbiter.fence()) else { return };
        // This thread has a lane's rights: it may have to read the arbiter's files.
        seccomp::enter(Role::Lane, &[]);
        loop {
            std::thread::sleep(TERM_LOOK);
            let answer = fence.ask();
            let Some(engine) = engine.upgrade() else { return };
            if engine.machine.events().ended().is_some() {
                return;
            }
            if answer == Permission::Lost {
                return engine.replaced(fence.reason());
            }
        }
    }

    fn replaced(self: &Arc<Self>, reason: String) {
        // End the machine first: the engine may be stuck.
        self.machine.end(Ended::Fenced(reason.clone()));
        self.event(Event::Fenced { reason });
    }
}

/// Finds, by counting the watchdog's turns, whether a lane hangs in a look at the fence.
#[derive(Default)]
struct Looks {
    /// When the oldest look began. `turns` counts the turns that have found it.
    oldest: Option<Instant>,
    turns: u32,
}

impl Looks {
    fn look(&mut self, engine: &Arc<Engine>, every: Duration) {
        let gate = engine.machine.gate();
        let oldest = gate.asks_since();
        self.turns = if oldest.is_some() && oldest == self.oldest { self.turns + 1 } else { 0 };
        self.oldest = oldest;
        let is_long = every * self.turns >= LONGEST_LOOK.max(engine.options.stall_timeout);
        // P2: a write under way could arrive over data that another machine has written. A write
        // that begins later asks first.
        let known = engine.watchdog.look_hangs();
        let hangs = is_long && (known || !gate.may_be_writing());
        if hangs != known {
            engine.watchdog.look_hangs.store(hangs, Ordering::Release);
            engine.tell_core();
        }
    }
}

/// Finds, by counting the watchdog's turns, whether a lane hangs.
#[derive(Default)]
struct Jobs {
    /// The jobs at the last turn, at most one for each lane. The number counts the turns in which
    /// the lane has made no progress.
    seen: Vec<(LaneJob, u32)>,
}

impl Jobs {
    fn look(&mut self, engine: &Engine, every: Duration) {
        let former = std::mem::take(&mut self.seen);
        for job in engine.machine.gate().lane_jobs() {
            let before = former.iter().find(|(seen, _)| *seen == job);
            self.seen.push((job, before.map_or(0, |(_, turns)| turns + 1)));
        }
        let hanging = self.seen.iter().find(|(_, turns)| every * *turns >= LONGEST_CALL);
        let hangs = hanging.map(|(job, _)| hang_of(&job.lane));
        let former = std::mem::replace(&mut *engine.watchdog.hanging_lane(), hangs.clone());
        match (former, hangs) {
            (None, Some(why)) => log::error!("output does not leave: {why}"),
            (Some(_), None) => log::info!("no lane hangs any longer"),
            _ => {}
        }
    }
}

/// The reason for the operator that a lane hangs.
fn hang_of(lane: &str) -> String {
    format!(
        "the lane {lane} has made no progress for {LONGEST_CALL:?} or more: look for storage or a network that does not answer, \
         or, if `waits_for_arbiter` is true, for an arbiter or a disk's fence record that does not. A call may still be \
         carried out, so the standby does not take over by itself: order `take-over` there only if the call can no longer \
         have an effect"
    )
}

fn watch(engine: &Weak<Engine>, every: Duration) {
    let (mut seen, mut missed) = (0, 0);
    let (mut lanes, mut jobs) = (Looks::default(), Jobs::default());
    loop {
        std::thread::sleep(every);
        let Some(engine) = engine.upgrade() else { return };
        if engine.machine.events().ended().is_some() {
            return;
        }
        // Long work that makes progress is no stall, for instance clearing or copying all of a
        // large memory.
        let work = engine.machine.work_done();
        let looks = engine.watchdog.looks.load(Ordering::Relaxed);
        // Watch from the moment at which the guest runs.
        let (watched, looks) = (looks > 0 || engine.machine.has_run(), looks + work);
        let stalled = engine.watchdog.is_stalled();
        if looks != seen {
            (seen, missed) = (looks, 0);
            if stalled {
                engine.found(false);
            }
        } else if watched {
            missed += 1;
            if missed >= LOOKS && !stalled {
                engine.found(true);
            }
        }
        lanes.look(&engine, every);
        jobs.look(&engine, every);
        engine.wake_sealer();
        engine.machine.gate().tell_of_late_answers();
    }
}
