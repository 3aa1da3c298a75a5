//! What may be performed now.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::commit::GateId;
use crate::effect::Record;

/// An effect, an input or an operation on an own disk that may be performed now: the only form in
/// which a request is performed.
///
/// An effect takes this form only against a proof, which is spent by value:
/// [`Committed`](crate::host::Committed) on [`Ledger::release`](crate::host::Ledger::release), or
/// [`Alone`](crate::host::Alone) on [`Ledger::run_alone`](crate::host::Ledger::run_alone). An
/// operation on an own disk takes it only when it is [recorded](crate::host::Recorded) and its mark
/// is [durable](crate::host::Marked). It is not `Clone`, and settling takes it by value, so no
/// request is settled twice. A side that has lost the right to perform (P2) drops it without
/// settling: the request stays in flight.
#[derive(Debug)]
#[must_use = "an effect that is released has to be performed, then settled on the ledger"]
pub struct Performable {
    pub(crate) gate: GateId,
    pub(crate) record: Arc<Record>,
    pub(crate) copy: Option<Arc<Vec<u8>>>,
    pub(crate) replay: bool,
}

impl Performable {
    /// The operation and its origin.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The copy of the payload, if one was taken when it was staged.
    #[must_use]
    pub fn copy(&self) -> Option<&[u8]> {
        self.copy.as_deref().map(Vec::as_slice)
    }

    /// The gate that released it. A backend of another gate refuses it (P1): a proof is valid for
    /// one gate only.
    #[must_use]
    pub fn gate(&self) -> GateId {
        self.gate
    }

    /// Whether it was adopted from a checkpoint: the former primary may have performed it already.
    #[must_use]
    pub fn is_replay(&self) -> bool {
        self.replay
    }
}
