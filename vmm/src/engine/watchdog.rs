//! Whether the machine makes progress. P7: liveness is what the guest's output needs; signs of life that come from a machine
//! whose devices are stuck would keep its standby from going on.
//!
//! The device thread runs the devices, ends epochs and, for that, waits for every vCPU and for the engine's core: whoever of
//! these is stuck, it no longer comes to look ([`Watchdog::looked`]). A thread that takes no lock asks it to, again and again.
//! When it has not come for `--stall-timeout`, no more signs of life are given, whatever threads still could; the core is
//! told, and has the standby go on. Fenced this machine is as any other: each effect asks, and a thread of its own asks for the
//! machines that have no output, or are stuck ([`Engine::look_at_term`]).
//!
//! Of lanes it is watched whether they get an answer when they ask if this machine may perform. What hangs otherwise in one is
//! a system call on this machine's own storage or network, which may still be carried out later and cannot be taken back; to
//! have another machine go on meanwhile would risk what it writes (P2). A look at the fence is nothing that arrives later.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use ft_core::primary::Event;
use io_gate_host::Permission;
use kemari_confine::seccomp::{self, Role};

use super::Engine;
use crate::machine::Ended;

/// So often in a time-out it is looked whether there was progress. Times are counted, not measured: a process that was
/// stopped for a while has not made progress either.
const LOOKS: u32 = 8;
/// A look at the fence that has taken so long hangs: longer than a standby takes to find that it cannot ask the arbiter either,
/// and to say so ([`crate::standby::resources`]). Then this machine waits for the arbiter, as its standby would.
const LONGEST_LOOK: Duration = Duration::from_secs(15);
/// How often it is asked whether this machine has been replaced, besides before each effect.
const TERM_LOOK: Duration = Duration::from_millis(500);

/// What the threads of an engine tell the watchdog, and it tells them.
#[derive(Debug, Default)]
pub(super) struct Watchdog {
    looks: AtomicU64,
    stalled: AtomicBool,
    /// A lane asks whether this machine may perform, and has no answer.
    look_hangs: AtomicBool,
    /// Why the machine will make no progress any more.
    failed: OnceLock<String>,
}

impl Watchdog {
    /// The device thread has come to look for what there is to do, and has had the core.
    pub(super) fn looked(&self) {
        self.looks.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the machine makes no progress.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Acquire) || self.failed.get().is_some()
    }

    /// Whether the standby is to go on with the guest, if it can: here nothing leaves.
    pub(super) fn look_hangs(&self) -> bool {
        self.look_hangs.load(Ordering::Acquire)
    }

    /// The machine has failed: there is nothing to wait for.
    pub(super) fn has_failed(&self, why: &str) {
        // The first reason counts.
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
                "no answer for {:?} whether this machine may perform: look for the arbiter's directory, or the storage of a disk's \
                 fence record, that does not answer",
                LONGEST_LOOK.max(self.options.stall_timeout)
            );
        }
        format!(
            "the devices, a vCPU or the engine have made no progress for {:?} (--stall-timeout)",
            self.options.stall_timeout
        )
    }

    /// The thread `watchdog`: whoever drops the engine ends the watch.
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

    /// Nothing in here waits for anybody before the stall is known to all that give signs of life.
    fn found(self: &Arc<Self>, stalled: bool) {
        self.watchdog.stalled.store(stalled, Ordering::Release);
        if stalled {
            log::error!("{}: handing the guest to the standby", self.stall_reason());
        }
        self.tell_core();
    }

    /// The core hears of a change before any other event. By another thread: its lock may be what is stuck.
    fn tell_core(self: &Arc<Self>) {
        let engine = self.clone();
        let failed = |error| log::error!("cannot start a thread to report the stall: {error}");
        self.launcher.launch("stall", move || engine.event(Event::Tick), failed);
    }

    /// The thread `term`. P2: a machine that another one has gone on from ends, also when it has nothing to perform: an idle guest
    /// would run on beside its successor, and read a disk that the other writes.
    pub(super) fn look_at_term(engine: Weak<Self>) {
        let arbiter = engine.upgrade().and_then(|engine| engine.arbiter.clone());
        let Some(fence) = arbiter.map(|arbiter| arbiter.fence()) else { return };
        // As lanes do, it may have to read the arbiter's files.
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
        // First: the engine may be stuck.
        self.machine.end(Ended::Fenced(reason.clone()));
        self.event(Event::Fenced { reason });
    }
}

/// Sees whether a lane hangs in a look at the fence, by the watchdog's turns.
#[derive(Default)]
struct Looks {
    /// When it was begun, and for how many turns it has been there.
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
        // P2: a write that is under way could arrive over what another machine has written. One that begins later asks.
        let known = engine.watchdog.look_hangs();
        let hangs = is_long && (known || !gate.may_be_writing());
        if hangs != known {
            engine.watchdog.look_hangs.store(hangs, Ordering::Release);
            engine.tell_core();
        }
    }
}

fn watch(engine: &Weak<Engine>, every: Duration) {
    let (mut seen, mut missed) = (0, 0);
    let mut lanes = Looks::default();
    loop {
        std::thread::sleep(every);
        let Some(engine) = engine.upgrade() else { return };
        if engine.machine.events().ended().is_some() {
            return;
        }
        // What takes long and goes on is no stall: clearing or copying all of a large memory.
        let work = engine.machine.work_done();
        let looks = engine.watchdog.looks.load(Ordering::Relaxed);
        // From the moment that the guest runs.
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
        engine.wake_sealer();
        engine.machine.gate().tell_of_late_answers();
    }
}
