//! What must hold after all faults have healed.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ft_core::primary::Phase;

use super::World;
use crate::scheduler::{self, Host};
use crate::sides::Shared;
use crate::tally::{self, Kind};
use crate::{broken, faults, judge};

/// Interval at which the operator asks for the status of a machine.
const LOOK: Duration = Duration::from_millis(15);
/// The longest wait for the engine's lock, in nanoseconds: no call under this lock can block (P7).
const LONGEST_LOOK: u64 = 40_000_000;

/// Whether a status request to the first primary is waiting.
static WAITS: AtomicBool = AtomicBool::new(false);

/// Whether the first primary's engine is stuck: a held thread has its lock.
pub(super) fn is_stuck() -> bool {
    WAITS.load(Ordering::Relaxed)
}

/// Asks for the status of a machine repeatedly.
pub(super) fn look_at(host: Host, side: Shared) {
    std::thread::spawn(move || {
        let engine = loop {
            std::thread::sleep(LOOK);
            let Ok(side) = side.try_lock() else { continue };
            if let Some(engine) = &side.engine {
                break engine.clone();
            }
        };
        // Only a thread of its own host may drop the engine.
        let engine = std::mem::ManuallyDrop::new(engine);
        loop {
            std::thread::sleep(LOOK);
            let now = || scheduler::with(|world| world.now);
            let begun = now();
            WAITS.fetch_or(host == Host::A, Ordering::Relaxed);
            let _ = engine.phase();
            WAITS.fetch_and(host != Host::A, Ordering::Relaxed);
            let took = now() - begun;
            let excused = scheduler::with(|world| world.was_stopped_since(host, begun))
                || faults::was_held_since(begun);
            if took > LONGEST_LOOK && !excused {
                broken(&format!("P7: the engine's lock was held for {} ms", took / 1_000_000));
            }
        }
    });
}

impl World {
    /// After all faults have healed, a replaced machine ends (P2), a machine with a standby is
    /// protected again (P7), and the threads of earlier sessions and attempts have ended (P9).
    pub(super) fn come_to_rest(&mut self) {
        if judge::runs() > self.runs {
            let primary = self.primary;
            if !self.killed.contains(&primary) {
                self.wait_for("P2: the end of a machine that was replaced", |world| {
                    world.has_ended(primary)
                });
                tally::saw(Kind::Replaced);
            }
            return;
        }
        if self.killed.contains(&self.primary) || self.has_ended(self.primary) {
            return;
        }
        if self.killed.is_empty() && !self.has_ended(self.standby) {
            self.wait_for("P7: protection again", |world| {
                world.phase() == Some(Phase::Protected) || world.has_ended(world.primary)
            });
        }
        for host in [self.primary, self.standby] {
            if !self.killed.contains(&host) {
                self.wait_for_single_threads(host);
            }
        }
    }

    /// Waits until no two threads of the host have the same name: threads of former sessions and
    /// attempts have ended.
    fn wait_for_single_threads(&self, host: Host) {
        let twice = || {
            let names = scheduler::with(|world| world.threads_on(host));
            let mut seen = BTreeSet::new();
            names.into_iter().find(|name| !name.is_empty() && !seen.insert(name.clone()))
        };
        let begun = std::time::Instant::now();
        while let Some(name) = twice() {
            if begun.elapsed() > super::PATIENCE {
                broken(&format!("P9: two threads `{name}` on {host:?}"));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Sets whether the consoles are read.
    pub(super) fn set_reads(&self, reads: bool) {
        if !reads {
            tally::saw(Kind::ConsoleUnread);
        }
        self.reads.store(reads, Ordering::SeqCst);
    }
}
