//! From a staged operation to one that may be performed: it gets its place in the list, and its
//! mark is durable.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::chain::Payload;
use crate::commit::GateId;
use crate::effect::{EffectId, EffectOp, OwnOp, Record, Request, Seq};
use crate::performable::Performable;

/// What a device asked of an own disk. The ledger hands these out in the order of the requests.
#[derive(Debug)]
pub enum OwnRequest {
    /// An operation that has to be recorded.
    Operation(Listable),
    /// A read. It changes nothing, so it is not recorded. It is performed at this place among the
    /// operations.
    Read(Performable),
}

impl OwnRequest {
    /// The request, and the chain that waits for it.
    #[must_use]
    pub fn record(&self) -> &Record {
        match self {
            Self::Operation(operation) => operation.record(),
            Self::Read(read) => read.record(),
        }
    }
}

/// A staged operation on an own disk, with its bytes as they were when it was staged. It has no
/// place in the list yet, and cannot be performed:
///
/// ```compile_fail,E0599
/// # use io_gate::host::{Listable, Marked, Performable};
/// fn hurry(operation: Listable, marked: Marked) -> Performable {
///     operation.performable(marked)
/// }
/// ```
///
/// Neither `Clone` nor constructible, so each operation is recorded once:
///
/// ```compile_fail,E0599
/// # use io_gate::host::Listable;
/// fn twice(operation: &Listable) -> Listable { operation.clone() }
/// ```
#[derive(Debug)]
#[must_use = "an operation on an own disk has to be recorded, then performed"]
pub struct Listable {
    pub(crate) gate: GateId,
    pub(crate) record: Arc<Record>,
    pub(crate) copy: Option<Arc<Vec<u8>>>,
}

/// A place in the list, for one operation. Made by the [`ListAuthority`], spent by value.
///
/// ```compile_fail,E0451
/// # use io_gate::host::{EffectId, GateId, Place, Seq};
/// fn made_up(gate: GateId, id: EffectId) -> Place {
///     Place { gate, id, seq: Seq(1), listed: true }
/// }
/// ```
#[derive(Debug)]
#[must_use = "an operation is recorded by spending its place on the ledger"]
pub struct Place {
    pub(crate) gate: GateId,
    pub(crate) id: EffectId,
    pub(crate) seq: Seq,
    pub(crate) listed: bool,
}

/// An operation with its place. The next checkpoint carries the place: a standby that takes over
/// completes the request when the entry is performed, and does not perform it again (R1).
///
/// Before it may be performed, its mark must be durable (R3):
///
/// ```compile_fail,E0061
/// # use io_gate::host::{Performable, Recorded};
/// fn hurry(operation: Recorded) -> Performable { operation.performable() }
/// ```
#[derive(Debug)]
#[must_use = "what is recorded for the standby has to be performed here too"]
pub struct Recorded {
    pub(crate) gate: GateId,
    pub(crate) record: Arc<Record>,
    pub(crate) copy: Option<Arc<Vec<u8>>>,
    pub(crate) seq: Seq,
    pub(crate) listed: bool,
}

/// Proof that the mark of one operation's extent is durable, and stays until the operation is
/// performed (R3). Made by the [`ListAuthority`], spent by value.
///
/// ```compile_fail,E0451
/// # use io_gate::host::{EffectId, GateId, Marked};
/// fn made_up(gate: GateId, id: EffectId) -> Marked { Marked { gate, id } }
/// ```
#[derive(Debug)]
#[must_use = "a marked operation may be performed"]
pub struct Marked {
    gate: GateId,
    id: EffectId,
}

impl Listable {
    /// The operation, and the chain that waits for it.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The bytes of a write, as they were when it was staged.
    #[must_use]
    pub fn bytes(&self) -> Option<&[u8]> {
        bytes(&self.record, self.copy.as_ref())
    }
}

impl Recorded {
    /// The operation, and the chain that waits for it.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The bytes of a write, as they were when it was staged.
    #[must_use]
    pub fn bytes(&self) -> Option<&[u8]> {
        bytes(&self.record, self.copy.as_ref())
    }

    /// Its number in the list.
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// Whether the standby gets it. Without a standby nothing is listed (R12).
    #[must_use]
    pub fn is_listed(&self) -> bool {
        self.listed
    }

    /// A flush changes no byte, so it needs no mark. `None` for any other operation.
    #[must_use]
    pub fn mark_of_flush(&self) -> Option<Marked> {
        let is_flush = matches!(operation(&self.record), Some(EffectOp::BlockFlush { .. }));
        is_flush.then(|| Marked { gate: self.gate, id: self.record.id })
    }

    /// Spends the proof that its mark is durable.
    ///
    /// # Panics
    /// When the proof is of another operation: the driver of the marks is wrong, and a power loss
    /// could leave a write without a mark.
    pub fn performable(self, marked: Marked) -> Performable {
        assert!(
            (marked.gate, marked.id) == (self.gate, self.record.id),
            "R3: expected the mark of operation {}, found that of {}",
            self.record.id.0,
            marked.id.0
        );
        let Self { gate, record, copy, .. } = self;
        Performable { gate, record, copy, replay: false }
    }
}

/// The one authority over the list of a gate's own disks: it gives each operation its place, and
/// says that marks are durable. Moved to the driver of the list and of the marks, as the commit
/// authority is to the protocol core. It is neither `Clone` nor constructible elsewhere.
///
/// ```compile_fail,E0599
/// # use io_gate::host::ListAuthority;
/// fn second(authority: &ListAuthority) -> ListAuthority { authority.clone() }
/// ```
#[derive(Debug)]
pub struct ListAuthority {
    gate: GateId,
    /// R12: without a standby nothing is listed.
    recording: bool,
    last: Seq,
    newest: Option<EffectId>,
}

impl ListAuthority {
    pub(crate) fn new(gate: GateId) -> Self {
        Self { gate, recording: false, last: Seq(0), newest: None }
    }

    /// Recording begins. The lane must be empty (R12): what it still performs would be neither in
    /// the list nor in the first reading of the resync.
    pub fn begin(&mut self) {
        self.recording = true;
    }

    /// Recording ends: the standby is gone.
    pub fn end(&mut self) {
        self.recording = false;
    }

    /// The operation has the number `seq` in the list, which has its bytes: the standby gets it
    /// with the checkpoint.
    ///
    /// # Panics
    /// When nothing is recorded, or the order of the list is not that of the requests (R1).
    pub fn listed(&mut self, operation: &Listable, seq: Seq) -> Place {
        assert!(
            self.recording,
            "R12: operation {} is listed, but nothing is recorded",
            operation.record.id.0
        );
        self.place(operation, seq, true)
    }

    /// The operation has the number `seq`, and nothing is recorded: the machine has no standby.
    ///
    /// # Panics
    /// When operations are recorded (R1), or the numbers do not grow.
    pub fn not_recording(&mut self, operation: &Listable, seq: Seq) -> Place {
        assert!(
            !self.recording,
            "R1: operation {} is not listed, but the standby expects it",
            operation.record.id.0
        );
        self.place(operation, seq, false)
    }

    fn place(&mut self, operation: &Listable, seq: Seq, listed: bool) -> Place {
        let id = operation.record.id;
        assert!(operation.gate == self.gate, "R1: an operation of another gate is recorded");
        assert!(
            self.last < seq && self.newest.is_none_or(|newest| newest < id),
            "R1: operation {} gets the number {}, after {:?} with the number {}",
            id.0,
            seq.0,
            self.newest,
            self.last.0
        );
        (self.last, self.newest) = (seq, Some(id));
        Place { gate: self.gate, id, seq, listed }
    }

    /// The mark of the operation's extent is durable, and is not removed before the operation is
    /// performed (R3).
    ///
    /// # Panics
    /// When the operation is of another gate.
    pub fn marked(&mut self, operation: &Recorded) -> Marked {
        assert!(operation.gate == self.gate, "R3: the mark of another gate's operation");
        Marked { gate: self.gate, id: operation.record.id }
    }
}

/// A request for an own disk that was in flight in a checkpoint. The list has the operation, so it
/// is only completed: there is no way to perform it (R1).
///
/// ```compile_fail,E0599
/// # use io_gate::host::{Completable, Marked, Performable};
/// fn again(request: Completable, marked: Marked) -> Performable { request.performable(marked) }
/// ```
#[derive(Debug)]
#[must_use = "the chain waits until its entry is performed, and is completed then"]
pub struct Completable {
    pub(crate) gate: GateId,
    pub(crate) record: Arc<Record>,
    pub(crate) seq: Seq,
}

impl Completable {
    /// The operation, and the chain that waits for it.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The entry of the list. The request is completed when all entries up to this one that the
    /// standby has are performed.
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.seq
    }
}

fn operation(record: &Record) -> Option<&EffectOp> {
    match &record.request {
        Request::Own(OwnOp { op, .. }) => Some(op),
        Request::Effect(_) | Request::Input(_) => None,
    }
}

fn bytes<'r>(record: &'r Record, copy: Option<&'r Arc<Vec<u8>>>) -> Option<&'r [u8]> {
    let own = operation(record).and_then(EffectOp::payload).and_then(Payload::inline_bytes);
    copy.map(|copy| copy.as_slice()).or(own)
}
