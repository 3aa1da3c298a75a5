//! Power events: hands performed ones to the device thread, and drops resets that the machine's own
//! reset has made pointless.

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

    /// Takes and settles the power events that have been performed, and clears the event
    /// descriptor.
    #[must_use]
    pub fn take_power_events(&self) -> Vec<PowerEvent> {
        self.far_side.take_power_events()
    }

    /// Takes the first power event that has been performed. A reset stays in flight until
    /// [`forget_resets`](Self::forget_resets), and a power-off until the process ends.
    #[must_use]
    pub fn next_power_event(&self) -> Option<PowerEvent> {
        self.far_side.next_power_event()
    }

    /// Drops all resets, since the machine has been reset: those that are held or queued take no
    /// effect any more, and those that were performed are settled.
    pub fn forget_resets(&self) {
        // Cancel the held resets before waiting for the lane: then no reset is released during that
        // wait.
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

    /// Gives up the resets in the queue of the power lane, which waits for an unreachable arbiter.
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
