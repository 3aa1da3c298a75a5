//! The ledger behind the gate. It lists all effects and inputs that are not settled, with the epoch
//! of each effect, and releases effects only against a proof.
//!
//! Invariants, asserted in release builds too (P1, P5):
//! - tokens issued = staged + merged + returned, at the end of every session and of every epoch;
//! - staged + adopted = performed + replayed + cancelled + in flight;
//! - no effect becomes [`Performable`] without a [`Committed`] or [`Alone`] proof of this gate;
//! - operations on own disks: staged + adopted = performed + completed + cancelled + in flight, and
//!   at the end of an epoch each one in flight has its place in the list (R1).

mod cancel;
mod in_flight;
mod own;
mod staging;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::chain::Payload;
use crate::commit::{Alone, CommitAuthority, Committed, Epoch, GateId};
use crate::effect::{EffectId, Record, Request};
use crate::load::{Load, Weight};
use crate::own::OwnPorts;
use crate::performable::Performable;
pub use in_flight::{InFlightError, check_in_flight};
use own::Own;
pub use own::{OwnCounts, OwnGate, new_gate_with_own_disks};

/// Makes a gate that holds effects, and the one authority over that gate.
#[must_use]
pub fn new_gate() -> (Ledger, CommitAuthority) {
    let gate = GateId::unique();
    (Ledger::new(gate, OwnPorts::none()), CommitAuthority::new(gate))
}

/// Counts of tokens and effects so far; see the module's invariants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tokens issued to devices.
    pub issued: u64,
    /// Tokens spent on an effect.
    pub staged: u64,
    /// Tokens merged into an effect that has not left yet: a further console byte, a second reset.
    pub merged: u64,
    /// Tokens dropped unspent.
    pub returned: u64,
    /// Effects performed and settled.
    pub performed: u64,
    /// Effects adopted from a checkpoint and settled.
    pub replayed: u64,
    /// Effects cancelled or abandoned before they were settled: the machine lost the right to
    /// perform (P2) or was reset, the driver reset the device, or the device refused the chain.
    pub cancelled: u64,
    /// Operations on own disks.
    pub own: OwnCounts,
}

/// The state of one gate: plain data, no descriptor, no callback.
#[derive(Debug)]
pub struct Ledger {
    gate: GateId,
    epoch: Epoch,
    /// The proof that the machine runs alone. While it is present, each staged effect may leave at
    /// once.
    alone: Option<Alone>,
    next_id: u64,
    /// Effects staged and not yet released, oldest first. Their records are in `in_flight`.
    held: VecDeque<Held>,
    /// Bytes that the held effects carry.
    held_bytes: usize,
    /// Inputs requested and not yet handed to a backend.
    inputs: VecDeque<Performable>,
    /// Requests for own disks.
    own: Own,
    /// Requests that are not settled: each checkpoint carries them.
    in_flight: BTreeMap<EffectId, InFlight>,
    /// The slot and weight of each request that was abandoned after it had gone to its backend. The
    /// guest no longer waits for it and checkpoints no longer contain it, but it takes memory until
    /// the backend settles it.
    abandoned: BTreeMap<EffectId, (u16, Weight)>,
    /// The weight of all requests that are not settled (P9).
    load: Load,
    /// For each slot, its newest effect for which no chain waits.
    detached: BTreeMap<u16, EffectId>,
    /// Number of effects adopted from a checkpoint.
    adopted: u64,
    /// Tokens issued in the current session and neither staged nor dropped.
    tokens_out: u64,
    counts: Counts,
}

#[derive(Debug)]
struct InFlight {
    record: Arc<Record>,
    replay: bool,
    weight: Weight,
}

/// An effect that waits to be released.
#[derive(Debug)]
struct Held {
    id: EffectId,
    epoch: Epoch,
    copy: Option<Arc<Vec<u8>>>,
    copied: bool,
    replay: bool,
}

impl Ledger {
    fn new(gate: GateId, own: OwnPorts) -> Self {
        Self {
            gate,
            epoch: Epoch(0),
            alone: None,
            next_id: 1,
            held: VecDeque::new(),
            held_bytes: 0,
            inputs: VecDeque::new(),
            own: Own::new(own),
            in_flight: BTreeMap::new(),
            abandoned: BTreeMap::new(),
            load: Load::default(),
            detached: BTreeMap::new(),
            adopted: 0,
            tokens_out: 0,
            counts: Counts::default(),
        }
    }

    /// The current epoch: effects that are staged now belong to it.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether the gate is closed: each effect waits until its epoch is committed.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.alone.is_none()
    }

    /// Number of effects that wait to be released.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Number of effects of `epoch` or later that wait to be released.
    #[must_use]
    pub fn held_in(&self, epoch: Epoch) -> usize {
        self.held.len() - self.held.partition_point(|held| held.epoch < epoch)
    }

    /// Payload bytes of the effects that wait to be released.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// The weight of all requests that are not settled: held, in a lane, or performed but not yet
    /// reported to the guest.
    #[must_use]
    pub fn load(&self) -> Weight {
        self.load.all()
    }

    /// As [`load`](Self::load), of one slot.
    #[must_use]
    pub fn load_of(&self, slot: u16) -> Weight {
        self.load.of(slot)
    }

    /// Whether a slot has reached its bound: a device that can wait must wait before it requests
    /// more. This bounds the memory that the machine needs for a guest's requests, with the gate
    /// open or closed (P9).
    #[must_use]
    pub fn is_full(&self, slot: u16) -> bool {
        self.load.is_full(slot)
    }

    /// Whether a slot that has waited may continue. The threshold is lower than that of
    /// [`is_full`](Self::is_full), so that a slot is not woken for each request.
    #[must_use]
    pub fn has_room(&self, slot: u16) -> bool {
        self.load.has_room(slot)
    }

    /// Counts of tokens and effects so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Ends the current epoch and begins the next. The guest must be paused: what is staged before
    /// the call belongs to the checkpoint, what is staged after the call does not (P1).
    ///
    /// # Panics
    /// When the counts do not add up, or an operation on an own disk has no place in the list.
    pub fn seal(&mut self) -> Epoch {
        self.assert_balanced();
        let sealed = self.epoch;
        self.epoch = sealed.next();
        sealed
    }

    /// All requests that are not settled, oldest first: the checkpoint's list of requests in
    /// flight.
    #[must_use]
    pub fn in_flight(&self) -> Vec<Record> {
        self.in_flight.values().map(|entry| (*entry.record).clone()).collect()
    }

    /// The id of the next request. It is part of the checkpoint, so that ids stay unique across
    /// failovers.
    #[must_use]
    pub fn next_id(&self) -> EffectId {
        EffectId(self.next_id)
    }

    /// Spends the proof that an epoch and all epochs before it are committed. Returns their
    /// effects, oldest first.
    ///
    /// # Panics
    /// When the proof is of another gate, or of an epoch that is not sealed.
    pub fn release(&mut self, proof: Committed) -> Vec<Performable> {
        assert!(proof.gate == self.gate, "P1: a proof for another gate");
        assert!(
            proof.epoch < self.epoch,
            "P1: a proof for epoch {}, but epoch {} is not sealed yet; the protocol core has taken \
             an acknowledgement for another's",
            proof.epoch,
            self.epoch
        );
        let covered = self.held.partition_point(|held| held.epoch <= proof.epoch);
        self.let_go(covered)
    }

    /// Spends the proof that the machine may run alone (P2), and returns all held effects, oldest
    /// first. From now on until [`hold`](Self::hold), each staged effect may be performed at once.
    ///
    /// # Panics
    /// When the proof is of another gate.
    pub fn run_alone(&mut self, proof: Alone) -> Vec<Performable> {
        assert!(proof.gate == self.gate, "P2: a proof for another gate");
        self.alone = Some(proof);
        self.let_go(self.held.len())
    }

    /// Releases the `count` oldest held effects. Called only with a proof (P1).
    fn let_go(&mut self, count: usize) -> Vec<Performable> {
        let (gate, in_flight) = (self.gate, &self.in_flight);
        let batch: Vec<Performable> =
            self.held.drain(..count).map(|held| performable(gate, in_flight, held)).collect();
        self.held_bytes -= batch.iter().map(|done| carried(&done.record)).sum::<usize>();
        batch
    }

    /// The identity of this gate.
    #[must_use]
    pub fn gate(&self) -> GateId {
        self.gate
    }

    /// Closes the gate: each effect staged from now on is held. This is always safe, so it needs no
    /// proof.
    pub fn hold(&mut self) {
        self.alone = None;
    }

    /// Whether [`take_ready`](Self::take_ready) would return anything.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        !self.inputs.is_empty() || (self.alone.is_some() && !self.held.is_empty())
    }

    /// Returns the requests that may be performed at once, oldest first: all inputs and, if the
    /// machine runs alone, all effects. Requests for own disks are apart:
    /// [`take_own`](Self::take_own).
    pub fn take_ready(&mut self) -> Vec<Performable> {
        if self.alone.is_none() {
            return self.inputs.drain(..).collect();
        }
        if self.inputs.is_empty() {
            return self.let_go(self.held.len());
        }
        // Keep the order of the requests. Virtio does not promise it, but a real disk keeps it.
        let mut effects = self.let_go(self.held.len()).into_iter().peekable();
        let mut inputs = self.inputs.drain(..).peekable();
        let mut ready = Vec::with_capacity(inputs.len() + effects.len());
        loop {
            let input = inputs.peek().map(|next| next.record.id);
            let effect = effects.peek().map(|next| next.record.id);
            let input_first = match (input, effect) {
                (None, None) => break,
                (Some(input), Some(effect)) => input < effect,
                (input, _) => input.is_some(),
            };
            ready.extend(if input_first { inputs.next() } else { effects.next() });
        }
        ready
    }

    /// Calls `copy` for each held effect that was staged since the last call, newest first. A guest
    /// that changes a buffer after it has given the buffer away must not change the bytes of a
    /// committed effect (P1).
    pub fn copy_held(&mut self, mut copy: impl FnMut(&Record) -> Option<Vec<u8>>) {
        for held in self.held.iter_mut().rev() {
            if held.copied {
                break;
            }
            held.copied = true;
            let entry = self.in_flight.get(&held.id).expect("what is held is in flight");
            held.copy = copy(&entry.record).map(Arc::new);
        }
    }

    /// Settles a request that has been performed. If a chain waited for it, the chain has
    /// gone back to the driver.
    ///
    /// # Panics
    /// When it is not in flight on this ledger: it was cancelled, or belongs to another gate.
    pub fn settle(&mut self, done: Performable) {
        assert!(done.gate == self.gate, "P1: an effect of another gate settled");
        let id = done.record.id;
        if self.end_abandoned(id) {
            return;
        }
        let entry = self.in_flight.remove(&id);
        let entry = entry.unwrap_or_else(|| panic!("P2: {id:?} settled, but not in flight"));
        self.load.remove(entry.record.origin.slot(), entry.weight);
        match (&entry.record.request, entry.replay) {
            (Request::Input(_), _) => {}
            (Request::Effect(_), false) => self.counts.performed += 1,
            (Request::Effect(_), true) => self.counts.replayed += 1,
            (Request::Own(_), _) => self.counts.own.performed += 1,
        }
    }

    /// Settles a request that its backend has not performed, if the request was abandoned. Any
    /// other request stays in flight.
    pub fn settle_if_abandoned(&mut self, given_up: Performable) {
        self.end_abandoned(given_up.record.id);
    }

    fn end_abandoned(&mut self, id: EffectId) -> bool {
        let Some((slot, weight)) = self.abandoned.remove(&id) else { return false };
        self.load.remove(slot, weight);
        true
    }

    /// Adopts the requests in flight of a checkpoint. Effects are held as replays until a proof is
    /// spent. Inputs are requested again. Operations on own disks are only completed:
    /// [`take_completable`](Self::take_completable).
    ///
    /// # Panics
    /// When this gate is already in use, or [`check_in_flight`] refuses the list.
    pub fn adopt(&mut self, epoch: Epoch, next_id: EffectId, in_flight: Vec<Record>) {
        assert!(self.in_flight.is_empty(), "P2: a gate in use cannot adopt another's requests");
        if let Err(error) = check_in_flight(epoch, next_id, &in_flight, &self.own.ports) {
            panic!("P4: a checkpoint that cannot be applied was accepted: {error}");
        }
        self.epoch = epoch.next();
        self.next_id = next_id.0;
        for record in in_flight {
            let (id, epoch) = (record.id, record.epoch);
            let record = Arc::new(record);
            match record.request {
                Request::Effect(_) => {
                    self.adopted += 1;
                    self.held_bytes += carried(&record);
                    // The restored memory holds the chain's bytes as of the checkpoint, so no copy
                    // is needed.
                    self.held.push_back(Held { id, epoch, copy: None, copied: true, replay: true });
                }
                Request::Input(_) => self.ask(self.input(record.clone(), true)),
                Request::Own(_) => self.own.adopt(record.clone()),
            }
            self.enter(record, true);
        }
    }

    pub(crate) fn assert_tokens_balanced(&self) {
        let Counts { issued, staged, merged, returned, own, .. } = self.counts;
        let staged = staged + own.staged;
        assert!(
            issued == staged + merged + returned && self.tokens_out == 0,
            "P5: {issued} tokens issued, {staged} staged, {returned} returned, {} missing in epoch \
             {} ({merged} merged); look for a device that forgets a token (mem::forget, ManuallyDrop, Box::leak, a \
             cycle of Rc) instead of staging or dropping it",
            self.tokens_out,
            self.epoch
        );
    }

    fn assert_balanced(&self) {
        self.assert_tokens_balanced();
        let Counts { staged, performed, replayed, cancelled, .. } = self.counts;
        let waiting = self
            .in_flight
            .values()
            .filter(|entry| matches!(entry.record.request, Request::Effect(_)))
            .count() as u64;
        assert!(
            staged + self.adopted == performed + replayed + cancelled + waiting,
            "P5: {staged} staged and {} adopted, but {performed} performed, {replayed} replayed, \
             {cancelled} cancelled and {waiting} in flight at the end of epoch {}; look for an \
             effect that is settled by hand, or for a ledger that is changed past its methods",
            self.adopted,
            self.epoch
        );
        self.assert_own_balanced();
    }
}

/// Turns a held effect into the form in which it leaves the ledger.
fn performable(gate: GateId, in_flight: &BTreeMap<EffectId, InFlight>, held: Held) -> Performable {
    let entry = in_flight.get(&held.id).expect("what is held is in flight");
    Performable { gate, record: entry.record.clone(), copy: held.copy, replay: held.replay }
}

/// Number of payload bytes of an effect; 0 for any other request.
fn carried(record: &Record) -> usize {
    match &record.request {
        Request::Effect(op) => op.payload().map_or(0, Payload::len),
        Request::Input(_) | Request::Own(_) => 0,
    }
}
