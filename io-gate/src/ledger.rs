//! The ledger behind the gate. It lists all effects and inputs that are not settled, with the epoch
//! of each effect, and releases effects only against a proof.
//!
//! Invariants, asserted in release builds too (P1, P5):
//! - tokens issued = staged + merged + returned, at the end of every session and of every epoch;
//! - staged + adopted = performed + replayed + cancelled + in flight;
//! - no effect becomes [`Performable`] without a [`Committed`] or [`Alone`] proof of this gate;
//! - operations on own disks: staged + adopted = performed + completed + cancelled + in flight, and
//!   at the end of an epoch each one in flight has its place in the list (R1).

mod own;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::chain::Payload;
use crate::commit::{Alone, CommitAuthority, Committed, Epoch, GateId};
use crate::effect::{EffectId, EffectOp, InputOp, Origin, PowerEvent, Record, Request};
use crate::load::{Load, Weight};
use crate::own::OwnPorts;
use crate::performable::Performable;
use own::Own;
pub use own::{OwnCounts, OwnGate, new_gate_with_own_disks};

/// Makes a gate that holds effects, and the one authority over that gate.
#[must_use]
pub fn new_gate() -> (Ledger, CommitAuthority) {
    let gate = GateId::unique();
    (Ledger::new(gate, OwnPorts::none()), CommitAuthority::new(gate))
}

/// Maximum number of bytes of console output that are merged into one effect. Only output for which
/// no chain waits is merged.
const MAX_MERGED: usize = 4096;

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

    /// Drops all effects that have not left: the machine was reset, or lost the right to perform.
    /// Returns their ids.
    pub fn cancel_held(&mut self) -> Vec<EffectId> {
        self.cancel_where(|record| matches!(record.request, Request::Effect(_)))
    }

    /// Drops resets of the machine that have not left: the machine has just been reset, so their
    /// cause is gone. A power-off stays, since it was requested and has not happened. Returns the
    /// ids of the dropped effects.
    pub fn cancel_resets(&mut self) -> Vec<EffectId> {
        let reset = Request::Effect(EffectOp::Power(PowerEvent::Reset));
        self.cancel_where(|record| record.request == reset)
    }

    /// Drops the requests of a slot's descriptor chains that have not left: the driver has reset
    /// the device and owns their memory again. Returns the ids of the dropped effects.
    pub fn cancel_chains_of(&mut self, slot: u16) -> Vec<EffectId> {
        self.cancel_where(
            |record| matches!(record.origin, Origin::Chain { slot: of, .. } if of == slot),
        )
    }

    /// Abandons the requests of a slot's descriptor chains that are still in flight, after
    /// [`cancel_chains_of`](Self::cancel_chains_of) has dropped those that have not left.
    /// Checkpoints no longer contain them: a takeover would perform them from memory that the
    /// driver has since reused. Settling them later changes nothing for the guest. Returns the ids
    /// of the effects.
    pub fn abandon_chains_of(&mut self, slot: u16) -> Vec<EffectId> {
        self.abandon(|record| matches!(record.origin, Origin::Chain { slot: of, .. } if of == slot))
    }

    /// Abandons resets of the machine that have left but were not performed: the machine has just
    /// been reset. Returns the ids of the effects.
    pub fn abandon_resets(&mut self) -> Vec<EffectId> {
        let reset = Request::Effect(EffectOp::Power(PowerEvent::Reset));
        let held: BTreeSet<EffectId> = self.held.iter().map(|held| held.id).collect();
        self.abandon(|record| record.request == reset && !held.contains(&record.id))
    }

    /// Abandons the selected requests in flight. Returns the ids of the effects among them.
    fn abandon(&mut self, which: impl Fn(&Record) -> bool) -> Vec<EffectId> {
        let ids: Vec<EffectId> = self
            .in_flight
            .values()
            .filter(|entry| which(&entry.record))
            .map(|entry| entry.record.id)
            .collect();
        let mut effects = Vec::new();
        for id in ids {
            let Some(entry) = self.in_flight.remove(&id) else { continue };
            self.abandoned.insert(id, (entry.record.origin.slot(), entry.weight));
            match entry.record.request {
                Request::Effect(_) => {
                    self.counts.cancelled += 1;
                    effects.push(id);
                }
                // R10: the list keeps the operation, and it is performed on both sides.
                Request::Own(_) => self.counts.own.cancelled += 1,
                Request::Input(_) => {}
            }
        }
        effects
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

    pub(crate) fn count_issued(&mut self) {
        self.counts.issued += 1;
        self.tokens_out += 1;
    }

    pub(crate) fn count_returned(&mut self) {
        self.tokens_out -= 1;
        self.counts.returned += 1;
    }

    pub(crate) fn stage(&mut self, origin: Origin, op: EffectOp) {
        assert!(self.tokens_out > 0, "P5: an effect without a token");
        self.tokens_out -= 1;
        if self.own.takes(origin.slot(), &op) {
            return self.stage_own(origin, op);
        }
        if let Origin::Detached { slot } = origin {
            if self.merge(slot, &op) {
                self.counts.merged += 1;
                return;
            }
            self.detached.insert(slot, EffectId(self.next_id));
        }
        self.counts.staged += 1;
        let epoch = self.epoch;
        let record = self.record(origin, Request::Effect(op));
        self.held_bytes += carried(&record);
        let id = record.id;
        self.held.push_back(Held { id, epoch, copy: None, copied: false, replay: false });
    }

    /// Merges `op` into the newest detached effect of the slot, if that effect has not left.
    /// Returns whether it has merged. So a guest that writes to a console byte by byte takes little
    /// more memory than the bytes, and repeated resets take none. Bytes are never added to an
    /// effect of a sealed epoch (P1).
    fn merge(&mut self, slot: u16, op: &EffectOp) -> bool {
        let Some(id) = self.detached.get(&slot) else { return false };
        if self.held.binary_search_by_key(id, |held| held.id).is_err() {
            return false;
        }
        let Some(InFlight { record, weight, .. }) = self.in_flight.get_mut(id) else {
            return false;
        };
        // The record has one owner until it leaves.
        let Some(record) = Arc::get_mut(record) else { return false };
        match (&mut record.request, op) {
            (Request::Effect(EffectOp::Power(held)), EffectOp::Power(event)) => held == event,
            (
                Request::Effect(EffectOp::ConsoleTx { port: to, bytes: held }),
                EffectOp::ConsoleTx { port, bytes },
            ) if to == port && record.epoch == self.epoch => {
                let Some(more) = bytes.inline_bytes() else { return false };
                if !held.extend(more, MAX_MERGED) {
                    return false;
                }
                let more = Weight::carried(more.len());
                *weight += more;
                self.held_bytes += bytes.len();
                self.load.add(slot, more);
                true
            }
            _ => false,
        }
    }

    pub(crate) fn request_input(&mut self, origin: Origin, op: InputOp) {
        let record = self.record(origin, Request::Input(op));
        self.ask(self.input(record, false));
    }

    /// Queues an input: a read of an own disk keeps its place among the operations.
    fn ask(&mut self, input: Performable) {
        if self.own.has(&input.record) {
            self.own.ask(input);
        } else {
            self.inputs.push_back(input);
        }
    }

    fn input(&self, record: Arc<Record>, replay: bool) -> Performable {
        Performable { gate: self.gate, record, copy: None, replay }
    }

    fn record(&mut self, origin: Origin, request: Request) -> Arc<Record> {
        let id = EffectId(self.next_id);
        self.next_id += 1;
        let record = Arc::new(Record { id, epoch: self.epoch, origin, request });
        self.enter(record.clone(), false);
        record
    }

    /// Adds a request to those in flight. Its weight counts until it is settled or cancelled.
    fn enter(&mut self, record: Arc<Record>, replay: bool) {
        let (id, weight) = (record.id, Weight::of(&record));
        self.load.add(record.origin.slot(), weight);
        self.in_flight.insert(id, InFlight { record, replay, weight });
    }

    pub(crate) fn waiting_since(
        &self,
        first: EffectId,
        origin: Origin,
    ) -> impl Iterator<Item = EffectId> + '_ {
        self.in_flight
            .range(first..)
            .filter(move |(_, entry)| entry.record.origin == origin)
            .map(|(id, _)| *id)
    }

    /// Drops the selected requests that have not left. Returns the ids of the effects among them,
    /// oldest first.
    fn cancel_where(&mut self, mut drops: impl FnMut(&Record) -> bool) -> Vec<EffectId> {
        let Self { held, inputs, own, in_flight, .. } = self;
        let mut ids = Vec::new();
        held.retain(|held| {
            let dropped = in_flight.get(&held.id).is_some_and(|entry| drops(&entry.record));
            ids.extend(dropped.then_some(held.id));
            !dropped
        });
        let effects = ids.len();
        inputs.retain(|input| {
            let dropped = drops(&input.record);
            ids.extend(dropped.then_some(input.record.id));
            !dropped
        });
        ids.extend(own.cancel(|id| in_flight.get(&id).is_some_and(|entry| drops(&entry.record))));
        ids.iter().for_each(|id| self.forget(*id));
        ids.truncate(effects);
        ids
    }

    /// Drops the requests that `origin` has made since `first`. Only the newest entries are
    /// searched.
    pub(crate) fn cancel_since(&mut self, first: EffectId, origin: Origin) {
        let waiting: Vec<EffectId> = self.waiting_since(first, origin).collect();
        let held = self.held.partition_point(|held| held.id < first);
        let inputs = self.inputs.partition_point(|input| input.record.id < first);
        let keeps = |id: EffectId| !waiting.contains(&id);
        let newest = self.held.split_off(held);
        self.held.extend(newest.into_iter().filter(|held| keeps(held.id)));
        let newest = self.inputs.split_off(inputs);
        self.inputs.extend(newest.into_iter().filter(|input| keeps(input.record.id)));
        self.own.cancel_since(first, |id| !keeps(id));
        waiting.iter().for_each(|id| self.forget(*id));
    }

    /// Removes a request from those in flight. The caller has already taken it out of `held`,
    /// `inputs` or `own`.
    fn forget(&mut self, id: EffectId) {
        let Some(entry) = self.in_flight.remove(&id) else { return };
        self.load.remove(entry.record.origin.slot(), entry.weight);
        match entry.record.request {
            Request::Effect(_) => {
                self.held_bytes -= carried(&entry.record);
                self.counts.cancelled += 1;
            }
            Request::Own(_) => self.counts.own.cancelled += 1,
            Request::Input(_) => {}
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

/// Why a list of requests in flight is not valid for a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InFlightError {
    /// The ids do not grow, or one of them is not below the next id.
    Order(EffectId),
    /// A request has a later epoch than the checkpoint.
    Epoch(EffectId),
    /// The next id is larger than a machine can reach by counting.
    Next(EffectId),
    /// An operation on a shared disk is listed like one on an own disk, or the other way round; or
    /// one on an own disk has no place in the list.
    Own(EffectId),
}

/// Upper bound of ids in a checkpoint, so that a machine that continues from it does not run out of
/// ids.
const MAX_ID: EffectId = EffectId(1 << 62);

impl core::fmt::Display for InFlightError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Order(EffectId(id)) => {
                write!(f, "expected growing numbers of requests in flight, found {id} out of order")
            }
            Self::Epoch(EffectId(id)) => {
                write!(f, "expected requests of the sealed epoch or before, found {id} of a later")
            }
            Self::Next(EffectId(id)) => {
                write!(f, "expected a next request below {}, found {id}", MAX_ID.0)
            }
            Self::Own(EffectId(id)) => write!(
                f,
                "expected a place in the disks' list for each operation on an own disk and for no \
                 other request, found request {id}: declare the same disks as own on both sides"
            ),
        }
    }
}

impl core::error::Error for InFlightError {}

/// Checks that the requests in flight of a checkpoint can be adopted by a machine with these own
/// disks. Call this before
/// acknowledging the checkpoint (P4): [`Ledger::adopt`] panics on any other list.
///
/// # Errors
/// See [`InFlightError`].
pub fn check_in_flight(
    epoch: Epoch,
    next_id: EffectId,
    in_flight: &[Record],
    own: &OwnPorts,
) -> Result<(), InFlightError> {
    if next_id >= MAX_ID {
        return Err(InFlightError::Next(next_id));
    }
    let mut last = None;
    for record in in_flight {
        if last.is_some_and(|last| record.id <= last) || record.id >= next_id {
            return Err(InFlightError::Order(record.id));
        }
        if record.epoch > epoch {
            return Err(InFlightError::Epoch(record.id));
        }
        if !own::fits(record, own) {
            return Err(InFlightError::Own(record.id));
        }
        last = Some(record.id);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::effect::{BlockWrite, Port};

    /// P9: `cancel_where` checks each request once, however many are held. A side that loses the
    /// right to perform must not hold the ledger's lock for long.
    #[test]
    fn p9_dropping_looks_at_each_request_once() {
        const HELD: u64 = 40_000;
        let (mut ledger, _authority) = new_gate();
        for number in 0..HELD {
            let origin = Origin::Chain { slot: (number % 2) as u16, queue: 0, head: 0 };
            let staged = ledger.chain_session(origin, |gate| {
                let data = Payload::inline(vec![0; 512]);
                Ok(gate.token::<BlockWrite>().stage(Port(0), number, data))
            });
            assert!(staged.is_ok());
        }
        let mut looks = 0;
        let dropped = ledger.cancel_where(|record| {
            looks += 1;
            record.origin.slot() == 1
        });
        assert_eq!((looks, dropped.len() as u64), (HELD, HELD / 2));
        assert!(dropped.is_sorted());
        assert_eq!(ledger.cancel_held().len() as u64, HELD / 2);
        assert_eq!((ledger.load(), ledger.held_bytes()), (Weight::default(), 0));
        ledger.seal();
    }
}
