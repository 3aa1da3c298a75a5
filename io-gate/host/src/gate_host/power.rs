//! Power events: performed ones for the device thread, and resets that a reset makes pointless.

use std::time::Instant;

use io_gate::PowerEvent;
use vmm_sys_util::eventfd::EventFd;

use super::{GateHost, RESET_PATIENCE};

impl GateHost {
    /// Signalled when a power event has been performed.
    #[must_use]
    pub fn power_event(&self) -> &EventFd {
        self.far_side.power_event()
    }

    /// Takes the power events that have been performed, and resets their event.
    #[must_use]
    pub fn take_power_events(&self) -> Vec<PowerEvent> {
        self.far_side.take_power_events()
    }

    /// Takes the first power event that has been performed.
    #[must_use]
    pub fn next_power_event(&self) -> Option<PowerEvent> {
        self.far_side.next_power_event()
    }

    /// Drops all other resets: the machine has been reset, and resets that were held or queued
    /// before are not performed.
    pub fn forget_resets(&self) {
        // Cancel held resets before waiting for the lane: nothing released during that wait is one
        // of them.
        let performer = self.performer();
        let mut ledger = self.far_side.ledger();
        let cancelled = ledger.cancel_resets();
        self.tell_cancelled(&cancelled);
        self.far_side.take_up(ledger);
        drop(performer);
        if !self.power.drain(Instant::now() + RESET_PATIENCE) {
            self.give_up_resets();
        }
        self.far_side.forget_resets();
    }

    /// The power lane waits for an unreachable arbiter: gives up the resets in its queue.
    fn give_up_resets(&self) {
        let _performer = self.performer();
        let given_up = self.power.give_up_resets();
        let mut ledger = self.far_side.ledger();
        let abandoned = ledger.abandon_resets();
        self.tell_cancelled(&abandoned);
        given_up.into_iter().for_each(|request| ledger.settle(request));
        self.far_side.take_up(ledger);
    }
}
