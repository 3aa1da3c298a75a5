//! What every thread of the far side shares: the ledger, the fence, and what waits for the device
//! thread.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use io_gate::host::{Ledger, Origin};
use io_gate::{Outcome, PowerEvent};
use vmm_sys_util::eventfd::EventFd;

use crate::completion::{Completion, Performed};
use crate::descriptors::event;
use crate::fence::Fence;
use crate::guest_memory::GuestMemory;

/// A broken invariant of the gate panics with its lock held; nothing may go on after that.
pub(crate) const POISONED: &str = "another thread has found the gate's invariants broken";

pub(crate) struct Core {
    pub(crate) memory: Arc<GuestMemory>,
    fence: Arc<dyn Fence>,
    fenced_off: AtomicBool,
    fenced_event: EventFd,
    ledger: Mutex<Ledger>,
    completions: Mutex<Vec<Completion>>,
    completions_event: EventFd,
    power: Mutex<VecDeque<PowerEvent>>,
    power_event: EventFd,
}

impl Core {
    pub(crate) fn new(
        ledger: Ledger,
        memory: Arc<GuestMemory>,
        fence: Arc<dyn Fence>,
    ) -> io::Result<Self> {
        Ok(Self {
            memory,
            fence,
            fenced_off: AtomicBool::new(false),
            fenced_event: event()?,
            ledger: Mutex::new(ledger),
            completions: Mutex::new(Vec::new()),
            completions_event: event()?,
            power: Mutex::new(VecDeque::new()),
            power_event: event()?,
        })
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect(POISONED)
    }

    /// P2: asked right before each effect is performed. Once the answer was no, it stays no.
    pub(crate) fn permitted(&self) -> bool {
        if self.is_fenced_off() {
            return false;
        }
        let permitted = self.fence.may_perform();
        if !permitted {
            self.fence_off();
        }
        permitted
    }

    pub(crate) fn is_fenced_off(&self) -> bool {
        self.fenced_off.load(Ordering::Acquire)
    }

    /// P2: from now on nothing is performed. What is held is dropped; the ledger counts it.
    pub(crate) fn fence_off(&self) {
        if !self.fenced_off.swap(true, Ordering::AcqRel) {
            self.ledger().cancel_held();
            signal(&self.fenced_event);
        }
    }

    pub(crate) fn fenced_event(&self) -> &EventFd {
        &self.fenced_event
    }

    /// Settles a request that nothing waits for; gives back any other. Whoever waits for that one
    /// is told on the device thread, and it stays in flight until then: a checkpoint taken before
    /// must carry it (P3).
    pub(crate) fn settle_detached(&self, done: Performed) -> Option<Performed> {
        if let Origin::Detached { slot } = done.request.record().origin {
            if done.outcome == Outcome::Failed {
                log::warn!("slot {slot}: an effect that nothing waits for has failed");
            }
            self.ledger().settle(&done.request);
            return None;
        }
        Some(done)
    }

    pub(crate) fn post(&self, completion: Completion) {
        self.post_all(&mut vec![completion]);
    }

    pub(crate) fn post_all(&self, completions: &mut Vec<Completion>) {
        if completions.is_empty() {
            return;
        }
        let mut waiting = self.completions.lock().expect(POISONED);
        let first = waiting.is_empty();
        waiting.append(completions);
        drop(waiting);
        if first {
            signal(&self.completions_event);
        }
    }

    pub(crate) fn completions_event(&self) -> &EventFd {
        &self.completions_event
    }

    pub(crate) fn take_completions(&self) -> Vec<Completion> {
        // The event first: what is posted after the list was taken signals again.
        drain(&self.completions_event);
        std::mem::take(&mut *self.completions.lock().expect(POISONED))
    }

    /// Takes the completions that wait for one slot, leaving the others.
    pub(crate) fn take_completions_of(&self, slot: u16) -> Vec<Completion> {
        let mut waiting = self.completions.lock().expect(POISONED);
        let (of_slot, others) = waiting.drain(..).partition(|completion| completion.slot() == slot);
        *waiting = others;
        of_slot
    }

    pub(crate) fn power(&self, event: PowerEvent) {
        self.power.lock().expect(POISONED).push_back(event);
        signal(&self.power_event);
    }

    pub(crate) fn power_event(&self) -> &EventFd {
        &self.power_event
    }

    pub(crate) fn take_power_events(&self) -> Vec<PowerEvent> {
        drain(&self.power_event);
        self.power.lock().expect(POISONED).drain(..).collect()
    }
}

/// Wakes whoever waits for an event.
pub(crate) fn signal(event: &EventFd) {
    // Fails only when the counter is at its limit, and then the event is signalled anyway.
    let _ = event.write(1);
}

fn drain(event: &EventFd) {
    // Fails only when nothing was signalled.
    let _ = event.read();
}
