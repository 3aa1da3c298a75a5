//! Events for the protocol core, from any thread and from the clock.
//!
//! Each event and the actions that follow from it are handled under the core's lock.

use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use ft_core::primary::Event;
use kemari_confine::seccomp::{self, Role};

use super::{Core, Engine};

impl Engine {
    /// Gives an event to the core and performs the returned actions.
    pub fn event(self: &Arc<Self>, event: Event) {
        let mut core = self.lock();
        self.event_locked(&mut core, event);
    }

    pub(super) fn event_locked(self: &Arc<Self>, core: &mut Core, event: Event) {
        self.tell_progress(core);
        if core.stopped {
            return;
        }
        if let Event::Frame { link, frame } = &event {
            self.record_bye(core, *link, &frame.message);
        }
        let actions = core.primary.handle(self.now(), event);
        match actions {
            Ok(actions) => self.perform(core, actions),
            // Expected when two threads race: for instance an answer for a link that has gone.
            Err(illegal) => log::debug!("{illegal}"),
        }
        self.tell_ticker(core);
    }

    /// Reports the start and the end of a stall to the core, before any event that may follow from
    /// the stall, for instance the loss of a link that was closed because of it.
    fn tell_progress(self: &Arc<Self>, core: &mut Core) {
        let primary = &core.primary;
        // P7: hand over only to a standby that could go on. Otherwise the guest waits here for the
        // answer.
        let hands_over = self.watchdog.look_hangs()
            && (primary.is_stalled()
                || primary.phase().standby_may_take_over() && primary.lack().is_none());
        let event = match (self.watchdog.is_stalled() || hands_over, primary.is_stalled()) {
            (true, false) => Event::Stalled { reason: self.stall_reason() },
            (false, true) => Event::Recovered,
            _ => return,
        };
        if core.stopped {
            return;
        }
        match core.primary.handle(self.now(), event) {
            Ok(actions) => self.perform(core, actions),
            Err(illegal) => log::debug!("{illegal}"),
        }
    }

    /// Wakes the ticker if its next look is too late for the core's deadline.
    pub(super) fn tell_ticker(&self, core: &Core) {
        let deadline = core.primary.next_deadline();
        let sooner = |at| deadline.is_some_and(|deadline| deadline < at);
        if core.stopped || core.ticks_at.is_some_and(sooner) {
            self.deadline_changed.notify_all();
        }
    }

    /// The thread `ticker`.
    pub(super) fn tick_on(engine: Weak<Self>) {
        let Some(engine) = engine.upgrade() else { return };
        seccomp::enter(Role::Timer, &engine.machine.wakes());
        engine.tick();
    }

    fn tick(self: &Arc<Self>) {
        let mut core = self.lock();
        while !core.stopped {
            let now = self.now();
            let deadline = core.primary.next_deadline();
            match deadline {
                Some(deadline) if deadline <= now => self.event_locked(&mut core, Event::Tick),
                _ => {
                    let wait = deadline.map_or(Duration::from_secs(3600), |d| d.since(now));
                    core.ticks_at = Some(now + wait);
                    core = self
                        .deadline_changed
                        .wait_timeout(core, wait)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0;
                    core.ticks_at = None;
                }
            }
        }
    }
}
