//! The device thread's side of a gate: completions, the events that wake the thread, and queues
//! that wait because their slot is full.

use std::os::fd::{AsRawFd, RawFd};

use io_gate::host::{Ledger, Performable};
use vmm_sys_util::eventfd::EventFd;

use super::GateHost;
use crate::completion::{Completion, Kind, Performed};

impl GateHost {
    /// Signalled when an effect is held, at most once between two calls of [`seal`](Self::seal).
    #[must_use]
    pub fn held_event(&self) -> &EventFd {
        &self.held_event
    }

    /// Signalled when completions wait for the device thread.
    #[must_use]
    pub fn completions_event(&self) -> &EventFd {
        self.far_side.completions_event()
    }

    /// The event descriptors by which this crate wakes other threads. A thread that runs device
    /// code must be able to write to these and to no others.
    #[must_use]
    pub fn wakes(&self) -> Vec<RawFd> {
        let own = [
            self.held_event.as_raw_fd(),
            self.completions_event().as_raw_fd(),
            self.power_event().as_raw_fd(),
            self.fenced_event().as_raw_fd(),
        ];
        own.to_vec()
    }

    /// Takes the waiting completions and clears their event. The caller must give each one to the
    /// slot that it names before the next [`seal`](Self::seal).
    #[must_use]
    pub fn take_completions(&self) -> Vec<Completion> {
        self.far_side.take_completions()
    }

    /// Drops a completion whose slot does not exist (a checkpoint of another machine).
    pub fn discard(&self, completion: Completion) {
        if let Kind::Performed(done) = completion.0 {
            self.settle(done);
        }
    }

    pub(crate) fn settle(&self, done: Performed) {
        self.far_side.settle([done.request]);
    }

    /// Settles requests under one hold of the ledger's lock.
    pub(crate) fn settle_all(&self, done: Vec<Performable>) {
        if !done.is_empty() {
            self.far_side.settle(done);
        }
    }

    /// Whether the slot has too many unsettled requests, so that its queue must wait. The queue is
    /// processed again when some of them are settled. This bounds what the machine buffers for a
    /// guest (P9).
    pub(crate) fn stalls(&self, ledger: &Ledger, slot: u16, queue: u16) -> bool {
        let full = ledger.is_full(slot) || self.far_side.own().is_full(slot);
        if full {
            self.far_side.stall(ledger, slot, queue);
        }
        full
    }

    /// Schedules more work of a register device: soon, or, if the slot is full, after some of its
    /// requests are settled.
    pub(crate) fn proceed_later(&self, ledger: &Ledger, slot: u16) {
        if !self.stalls(ledger, slot, 0) {
            self.post_again(slot, 0);
        }
    }

    /// Whether the slot has room again, so that a vCPU that waits for it may continue.
    #[must_use]
    pub fn has_room(&self, slot: u16) -> bool {
        self.far_side.ledger().has_room(slot)
    }

    /// Schedules the queue to be processed again soon.
    pub(crate) fn post_again(&self, slot: u16, queue: u16) {
        self.far_side.post_again(slot, queue);
    }
}
