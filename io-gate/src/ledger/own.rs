//! The ledger of own disks: operations leave it to be recorded for the standby, not against a proof
//! of commitment.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::Ledger;
use crate::chain::Payload;
use crate::commit::{CommitAuthority, GateId};
use crate::effect::{EffectId, EffectOp, InputOp, Origin, OwnOp, Record, Request, Seq};
use crate::own::{
    Completable, DurableCommitAuthority, ListAuthority, Listable, OwnPorts, OwnRequest, Place,
    Recorded, TermAuthority,
};
use crate::performable::Performable;

/// A gate of a machine with own disks, and its authorities: one of each.
#[derive(Debug)]
pub struct OwnGate {
    /// The ledger.
    pub ledger: Ledger,
    /// Of the protocol core.
    pub commit: DurableCommitAuthority,
    /// Of the driver of the list and of the marks.
    pub list: ListAuthority,
    /// Of the driver that asks the arbiter.
    pub terms: TermAuthority,
}

/// As [`new_gate`](super::new_gate), for a machine with these own disks.
#[must_use]
pub fn new_gate_with_own_disks(own: OwnPorts) -> OwnGate {
    let gate = GateId::unique();
    OwnGate {
        ledger: Ledger::new(gate, own),
        commit: DurableCommitAuthority::new(CommitAuthority::new(gate)),
        list: ListAuthority::new(gate),
        terms: TermAuthority::new(gate),
    }
}

/// Counts of operations on own disks; see the invariants of the ledger's module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnCounts {
    /// Tokens spent on an operation.
    pub staged: u64,
    /// Operations performed and settled.
    pub performed: u64,
    /// Operations of a checkpoint, completed and settled without being performed here.
    pub completed: u64,
    /// Operations whose chains are completed no more: the device refused the chain before the
    /// operation was recorded, or the driver reset the device. What is recorded is performed all
    /// the same (R10).
    pub cancelled: u64,
}

/// Requests for own disks that have not been taken.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) ports: OwnPorts,
    /// At most what one session stages, since they are taken at its end.
    staged: VecDeque<Staged>,
    /// Operations of a checkpoint.
    completable: Vec<Arc<Record>>,
    adopted: u64,
}

/// A request at its place among the others.
#[derive(Debug)]
enum Staged {
    Operation(EffectId),
    Read(Performable),
}

impl Staged {
    fn id(&self) -> EffectId {
        match self {
            Self::Operation(id) => *id,
            Self::Read(read) => read.record.id,
        }
    }
}

impl Own {
    pub(super) fn new(ports: OwnPorts) -> Self {
        Self { ports, staged: VecDeque::new(), completable: Vec::new(), adopted: 0 }
    }

    /// Whether an effect is an operation on an own disk.
    pub(super) fn takes(&self, slot: u16, op: &EffectOp) -> bool {
        op.is_of_disk() && op.port().is_some_and(|port| self.ports.contains(slot, port))
    }

    /// Whether an input is a read of an own disk.
    pub(super) fn has(&self, record: &Record) -> bool {
        matches!(&record.request, Request::Input(InputOp::BlockRead { port, .. })
            if self.ports.contains(record.origin.slot(), *port))
    }

    pub(super) fn ask(&mut self, read: Performable) {
        self.staged.push_back(Staged::Read(read));
    }

    pub(super) fn adopt(&mut self, record: Arc<Record>) {
        self.adopted += 1;
        self.completable.push(record);
    }

    /// Drops the selected requests, and returns their ids.
    pub(super) fn cancel(&mut self, mut drops: impl FnMut(EffectId) -> bool) -> Vec<EffectId> {
        let mut ids = Vec::new();
        self.staged.retain(|staged| {
            let dropped = drops(staged.id());
            ids.extend(dropped.then_some(staged.id()));
            !dropped
        });
        ids
    }

    /// As [`cancel`](Self::cancel), among the requests since `first`.
    pub(super) fn cancel_since(&mut self, first: EffectId, drops: impl Fn(EffectId) -> bool) {
        let older = self.staged.partition_point(|staged| staged.id() < first);
        let newest = self.staged.split_off(older);
        self.staged.extend(newest.into_iter().filter(|staged| !drops(staged.id())));
    }
}

impl Ledger {
    pub(super) fn stage_own(&mut self, origin: Origin, op: EffectOp) {
        self.counts.own.staged += 1;
        let record = self.record(origin, Request::Own(OwnOp { op, seq: None }));
        self.own.staged.push_back(Staged::Operation(record.id));
    }

    /// The ports of the own disks.
    #[must_use]
    pub fn own_ports(&self) -> &OwnPorts {
        &self.own.ports
    }

    /// Whether [`take_own`](Self::take_own) would return anything.
    #[must_use]
    pub fn has_own(&self) -> bool {
        !self.own.staged.is_empty()
    }

    /// Takes the requests for own disks, oldest first. Called at the end of each session that made
    /// some, before the guest runs on: `copy` copies a payload out of guest memory, so that both
    /// sides perform what was staged (R1).
    ///
    /// # Panics
    /// When a payload is in guest memory and `copy` gives none: the far side has checked its place
    /// when it lent the chain.
    pub fn take_own(
        &mut self,
        mut copy: impl FnMut(&Record) -> Option<Vec<u8>>,
    ) -> Vec<OwnRequest> {
        let (gate, in_flight) = (self.gate, &self.in_flight);
        let taken = self.own.staged.drain(..).map(|staged| match staged {
            Staged::Read(read) => OwnRequest::Read(read),
            Staged::Operation(id) => {
                let entry = in_flight.get(&id).expect("what is staged is in flight");
                let record = entry.record.clone();
                let copy = in_guest_memory(&record).then(|| copied(&record, &mut copy));
                OwnRequest::Operation(Listable { gate, record, copy })
            }
        });
        taken.collect()
    }

    /// Records an operation at its place, which later checkpoints carry. Called before the next
    /// [`seal`](Self::seal).
    ///
    /// # Panics
    /// When the place is another operation's.
    pub fn record_own(&mut self, operation: Listable, place: Place) -> Recorded {
        let Listable { gate, record, copy } = operation;
        assert!(gate == self.gate, "R1: an operation of another gate is recorded");
        assert!(
            (place.gate, place.id) == (gate, record.id),
            "R1: expected the place of operation {}, found that of {}",
            record.id.0,
            place.id.0
        );
        let record = match self.in_flight.get_mut(&place.id) {
            Some(entry) => {
                // Then the record has one owner, and changes in place.
                drop(record);
                if let Request::Own(own) = &mut Arc::make_mut(&mut entry.record).request {
                    own.seq = Some(place.seq);
                }
                entry.record.clone()
            }
            // R10: a driver that has reset its device meanwhile takes nothing from the list.
            None => record,
        };
        Recorded { gate, record, copy, seq: place.seq, listed: place.listed }
    }

    /// Takes the operations of the adopted checkpoint, oldest first. Each is completed when its
    /// entry is performed.
    pub fn take_completable(&mut self) -> Vec<Completable> {
        let gate = self.gate;
        let taken = self.own.completable.drain(..).filter_map(|record| {
            let seq = place_of(&record)?;
            Some(Completable { gate, record, seq })
        });
        taken.collect()
    }

    /// Settles an operation of a checkpoint: its entry is performed, and its chain has gone back to
    /// the driver.
    ///
    /// # Panics
    /// When it is not in flight on this ledger.
    pub fn settle_completed(&mut self, done: Completable) {
        assert!(done.gate == self.gate, "R1: an operation of another gate is settled");
        let id = done.record.id;
        if self.end_abandoned(id) {
            return;
        }
        let entry = self.in_flight.remove(&id);
        let entry = entry.unwrap_or_else(|| panic!("R1: {id:?} settled, but not in flight"));
        self.load.remove(entry.record.origin.slot(), entry.weight);
        self.counts.own.completed += 1;
    }

    pub(super) fn assert_own_balanced(&self) {
        let OwnCounts { staged, performed, completed, cancelled } = self.counts.own;
        let own = self.in_flight.values().filter_map(|entry| match &entry.record.request {
            Request::Own(own) => Some(own.seq),
            Request::Effect(_) | Request::Input(_) => None,
        });
        let (mut waiting, mut unplaced) = (0_u64, 0_u64);
        for place in own {
            waiting += 1;
            unplaced += u64::from(place.is_none());
        }
        assert!(
            staged + self.own.adopted == performed + completed + cancelled + waiting,
            "P5: {staged} operations on own disks staged and {} adopted, but {performed} performed, \
             {completed} completed, {cancelled} cancelled and {waiting} in flight at the end of \
             epoch {}; look for one that is settled by hand",
            self.own.adopted,
            self.epoch
        );
        assert!(
            unplaced == 0,
            "R1: {unplaced} operations on own disks without a place in the list at the end of epoch \
             {}; record each at the end of the session that staged it",
            self.epoch
        );
    }
}

/// Whether a record in flight is as a machine with these own disks writes it.
pub(super) fn fits(record: &Record, own: &OwnPorts) -> bool {
    let is_own = |op: &EffectOp| {
        op.is_of_disk() && op.port().is_some_and(|port| own.contains(record.origin.slot(), port))
    };
    match &record.request {
        Request::Effect(op) => !is_own(op),
        Request::Own(OwnOp { op, seq }) => is_own(op) && seq.is_some(),
        Request::Input(_) => true,
    }
}

fn place_of(record: &Record) -> Option<Seq> {
    match &record.request {
        Request::Own(own) => own.seq,
        Request::Effect(_) | Request::Input(_) => None,
    }
}

fn in_guest_memory(record: &Record) -> bool {
    let Request::Own(own) = &record.request else { return false };
    own.op.payload().and_then(Payload::guest_ranges).is_some()
}

fn copied(record: &Record, copy: &mut impl FnMut(&Record) -> Option<Vec<u8>>) -> Arc<Vec<u8>> {
    match copy(record) {
        Some(bytes) => Arc::new(bytes),
        None => panic!("R1: the payload of {:?} cannot be copied", record.id),
    }
}
