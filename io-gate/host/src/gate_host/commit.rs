//! The protocol's calls of a gate: they end epochs, and spend proofs that epochs are committed
//! (P1).

use std::sync::atomic::Ordering;

use io_gate::host::{Alone, Committed, Counts, EffectId, Epoch, Record, Weight};

use super::GateHost;
use crate::latency::LatencySummary;
use crate::observer::Noted;
use crate::poisoned::POISONED;

/// The result of [`GateHost::seal`], for the checkpoint.
#[derive(Debug)]
pub struct Sealed {
    /// The epoch that has ended.
    pub epoch: Epoch,
    /// All requests that are not settled, oldest first.
    pub in_flight: Vec<Record>,
    /// The id of the next request.
    pub next_id: EffectId,
    /// Number of effects that the sealed epoch holds.
    pub staged: usize,
}

impl GateHost {
    /// Ends the current epoch. Called on the device thread while the guest is paused.
    ///
    /// # Panics
    /// When the gate's counts do not add up (P5).
    #[must_use]
    pub fn seal(&self) -> Sealed {
        let mut ledger = self.far_side.ledger();
        let staged = ledger.held_in(ledger.epoch());
        let epoch = ledger.seal();
        self.held_signalled.store(false, Ordering::Release);
        Sealed { epoch, in_flight: ledger.in_flight(), next_id: ledger.next_id(), staged }
    }

    /// Spends a proof. The lanes perform the effects that it covers, in order.
    pub fn release(&self, proof: Committed) {
        let performer = self.performer();
        let batch = self.far_side.ledger().release(proof);
        self.note_released(&batch);
        self.hand_over_all(&performer, batch);
    }

    /// Spends a proof and opens the gate. The lanes perform all held effects, replays first. Later
    /// effects pass at once until [`hold`](Self::hold).
    pub fn run_alone(&self, proof: Alone) {
        let performer = self.performer();
        let mut ledger = self.far_side.ledger();
        if let Some(observer) = self.far_side.observer() {
            observer.opened(proof.term());
        }
        let mut batch = ledger.run_alone(proof);
        batch.extend(ledger.take_ready());
        self.tell_staged(&batch);
        drop(ledger);
        self.note_released(&batch);
        self.hand_over_all(&performer, batch);
    }

    /// Closes the gate: effects staged from now on are held.
    pub fn hold(&self) {
        let performer = self.performer();
        // Release what was staged while the gate was open: it has no copy, and must not wait for a
        // standby that does not know it.
        let mut ledger = self.far_side.ledger();
        let batch = ledger.take_ready();
        self.tell_staged(&batch);
        if let Some(observer) = self.far_side.observer()
            && !ledger.holds()
        {
            observer.held(ledger.next_id());
        }
        ledger.hold();
        drop(ledger);
        self.hand_over_all(&performer, batch);
        self.held_signalled.store(false, Ordering::Release);
    }

    /// Adopts the requests in flight of a checkpoint. [`run_alone`](Self::run_alone) performs them
    /// again.
    ///
    /// # Panics
    /// When this gate is already in use.
    pub fn adopt(&self, epoch: Epoch, next_id: EffectId, in_flight: Vec<Record>) {
        if let Some(observer) = self.far_side.observer() {
            let effects: Vec<Noted> = in_flight.iter().filter_map(Noted::of).collect();
            observer.adopted(&effects, next_id);
        }
        self.far_side.ledger().adopt(epoch, next_id, in_flight);
    }

    /// Whether effects wait for an acknowledgement before they leave.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.far_side.ledger().holds()
    }

    /// Number of effects that wait to be released.
    #[must_use]
    pub fn held(&self) -> usize {
        self.far_side.ledger().held()
    }

    /// Number of effects of the current epoch that wait to be released.
    #[must_use]
    pub fn held_in_epoch(&self) -> usize {
        let ledger = self.far_side.ledger();
        ledger.held_in(ledger.epoch())
    }

    /// The epoch of effects that are staged now.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.far_side.ledger().epoch()
    }

    /// Counts of tokens and effects so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.far_side.ledger().counts()
    }

    /// The weight of all requests that are not settled.
    #[must_use]
    pub fn load(&self) -> Weight {
        self.far_side.ledger().load()
    }

    /// How long effects have waited at the gate, by class.
    #[must_use]
    pub fn latencies(&self) -> Vec<LatencySummary> {
        self.latencies.lock().expect(POISONED).summaries()
    }

    /// Clears the recorded waits.
    pub fn reset_latencies(&self) {
        self.latencies.lock().expect(POISONED).reset();
    }
}
