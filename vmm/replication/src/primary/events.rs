//! Events for the protocol core, from any thread and from the clock.
//!
//! Each event and the actions that follow from it are handled under the engine's lock.

use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use ft_core::primary::Event;
use kemari_confine::seccomp::{self, Role};

use super::{Engine, EngineState};

impl Engine {
    /// Gives an event to the core and performs the returned actions.
    pub fn event(self: &Arc<Self>, event: Event) {
        let mut state = self.lock();
        self.event_locked(&mut state, event);
    }

    pub(super) fn event_locked(self: &Arc<Self>, state: &mut EngineState, event: Event) {
        self.tell_progress(state);
        if state.stopped {
            return;
        }
        if let Event::Frame { link, frame } = &event {
            self.record_bye(state, *link, &frame.message);
        }
        let actions = state.primary.handle(self.now(), event);
        match actions {
            Ok(actions) => self.perform(state, actions),
            // Expected when two threads race: for instance an answer for a link that has gone.
            Err(illegal) => log::debug!("{illegal}"),
        }
        self.tell_ticker(state);
    }

    /// Reports the start and the end of a stall to the core, before any event that may follow from
    /// the stall, for instance the loss of a link that was closed because of it.
    fn tell_progress(self: &Arc<Self>, state: &mut EngineState) {
        let primary = &state.primary;
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
        if state.stopped {
            return;
        }
        match state.primary.handle(self.now(), event) {
            Ok(actions) => self.perform(state, actions),
            Err(illegal) => log::debug!("{illegal}"),
        }
    }

    /// Wakes the ticker if its next look is too late for the core's deadline.
    pub(super) fn tell_ticker(&self, state: &EngineState) {
        let deadline = state.primary.next_deadline();
        let sooner = |at| deadline.is_some_and(|deadline| deadline < at);
        if state.stopped || state.ticks_at.is_some_and(sooner) {
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
        let mut state = self.lock();
        while !state.stopped {
            let now = self.now();
            let deadline = state.primary.next_deadline();
            match deadline {
                Some(deadline) if deadline <= now => self.event_locked(&mut state, Event::Tick),
                _ => {
                    let wait = deadline.map_or(Duration::from_secs(3600), |d| d.since(now));
                    state.ticks_at = Some(now + wait);
                    state = self
                        .deadline_changed
                        .wait_timeout(state, wait)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0;
                    state.ticks_at = None;
                }
            }
        }
    }
}
