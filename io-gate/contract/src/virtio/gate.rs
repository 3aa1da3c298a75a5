//! The machine's gate. Its disks are all shared, or all own disks: a device does not learn which.

use io_gate::Port;
use io_gate::host::{
    Completable, EffectId, Epoch, Ledger, ListAuthority, Listable, OwnGate, OwnOp, OwnPorts,
    OwnRequest, Performable, Record, Request, Seq, Term, new_gate, new_gate_with_own_disks,
};

use crate::memory::Memory;

/// The device's slot.
pub(super) const SLOT: u16 = 7;

/// What the disks of a machine are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disks {
    Shared,
    Own,
}

/// A gate that lets effects pass, with the list of its own disks.
pub(super) struct Gate {
    pub(super) ledger: Ledger,
    list: Option<(ListAuthority, Seq)>,
}

/// A request that its backend has not performed yet.
pub(super) enum Pending {
    Performed(Performable),
    /// The entry of the list is performed by the former machine's queue.
    Completed(Completable),
}

impl Pending {
    pub(super) fn record(&self) -> &Record {
        match self {
            Self::Performed(request) => request.record(),
            Self::Completed(request) => request.record(),
        }
    }

    pub(super) fn settle(self, ledger: &mut Ledger) {
        match self {
            Self::Performed(request) => ledger.settle(request),
            Self::Completed(request) => ledger.settle_completed(request),
        }
    }
}

impl Gate {
    pub(super) fn open(disks: Disks) -> Self {
        let (mut gate, alone) = match disks {
            Disks::Shared => {
                let (ledger, mut authority) = new_gate();
                (Self { ledger, list: None }, authority.alone(Term(1)))
            }
            Disks::Own => {
                let ports = (0..=u8::MAX).map(|port| (SLOT, Port(port))).collect();
                let gate = new_gate_with_own_disks(OwnPorts::new(ports));
                let OwnGate { ledger, mut commit, mut list, .. } = gate;
                list.begin();
                (Self { ledger, list: Some((list, Seq(0))) }, commit.alone(Term(1)))
            }
        };
        let none = gate.ledger.run_alone(alone);
        debug_assert!(none.is_empty(), "a fresh gate holds nothing");
        gate
    }

    pub(super) fn disks(&self) -> Disks {
        if self.list.is_some() { Disks::Own } else { Disks::Shared }
    }

    /// Adopts a checkpoint, and returns its requests in order.
    pub(super) fn adopt(
        &mut self,
        epoch: Epoch,
        next: EffectId,
        in_flight: Vec<Record>,
        memory: &Memory,
    ) -> Vec<Pending> {
        self.ledger.adopt(epoch, next, in_flight);
        let completed = self.ledger.take_completable().into_iter().map(Pending::Completed);
        let mut pending: Vec<Pending> = completed.collect();
        pending.extend(self.take(memory));
        pending.sort_by_key(|request| request.record().id);
        pending
    }

    /// What may be performed now, in the order of the requests.
    pub(super) fn take(&mut self, memory: &Memory) -> Vec<Pending> {
        let mut taken: Vec<Performable> = self.ledger.take_ready();
        for request in self.ledger.take_own(|record| copy(record, memory)) {
            taken.push(match request {
                OwnRequest::Operation(operation) => self.record(operation),
                OwnRequest::Read(read) => read,
            });
        }
        taken.sort_by_key(|request| request.record().id);
        taken.into_iter().map(Pending::Performed).collect()
    }

    fn record(&mut self, operation: Listable) -> Performable {
        let Some((list, last)) = &mut self.list else {
            unreachable!("a gate without own disks lists nothing")
        };
        *last = last.next();
        let place = list.listed(&operation, *last);
        let recorded = self.ledger.record_own(operation, place);
        let marked = list.marked(&recorded);
        recorded.performable(marked)
    }
}

fn copy(record: &Record, memory: &Memory) -> Option<Vec<u8>> {
    let Request::Own(OwnOp { op, .. }) = &record.request else { return None };
    Some(memory.gather(op.payload()?.guest_ranges()?))
}
