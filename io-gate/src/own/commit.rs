//! The commit authority of a machine with own disks (R4).

use crate::commit::{Alone, CommitAuthority, Committed, Epoch, GateId, Term};
use crate::effect::Seq;

/// The one authority over a gate with own disks. An epoch is committed when the standby has
/// acknowledged it, and the flushes that the guest had seen complete before the epoch's end are
/// durable on the standby's images. The number of an epoch proves the first only:
///
/// ```compile_fail,E0308
/// # use io_gate::host::{Committed, DurableCommitAuthority, Epoch};
/// fn hurry(authority: &mut DurableCommitAuthority) -> Committed {
///     authority.acknowledged(Epoch(0))
/// }
/// ```
///
/// The other way out is a term that excludes the standby: [`alone`](Self::alone).
///
/// ```compile_fail,E0599
/// # use io_gate::host::DurableCommitAuthority;
/// fn second(authority: &DurableCommitAuthority) -> DurableCommitAuthority { authority.clone() }
/// ```
#[derive(Debug)]
pub struct DurableCommitAuthority {
    commit: CommitAuthority,
}

/// Proof that an epoch's outputs wait for no flush any more. Made by
/// [`DurableCommitAuthority::durable`] alone, spent by value.
///
/// ```compile_fail,E0451
/// # use io_gate::host::{DurableEpoch, Epoch, GateId};
/// fn made_up(gate: GateId, epoch: Epoch) -> DurableEpoch { DurableEpoch { gate, epoch } }
/// ```
#[derive(Debug)]
#[must_use = "outputs stay held until the proof is spent on the authority"]
pub struct DurableEpoch {
    gate: GateId,
    epoch: Epoch,
}

impl DurableEpoch {
    /// The epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
}

impl DurableCommitAuthority {
    pub(crate) fn new(commit: CommitAuthority) -> Self {
        Self { commit }
    }

    /// The proof for `epoch`, if the standby's images are durable up to `flushed`, the last flush
    /// that the guest had seen complete when the epoch was sealed. `standby` is what the standby
    /// has reported. A machine with `flush=memory` does not wait for reports, and gives `flushed`.
    #[must_use]
    pub fn durable(&self, epoch: Epoch, flushed: Seq, standby: Seq) -> Option<DurableEpoch> {
        (flushed <= standby).then(|| DurableEpoch { gate: self.commit.gate(), epoch })
    }

    /// Makes the proof for the epoch and all epochs before it. The standby has acknowledged the
    /// whole of it.
    ///
    /// # Panics
    /// When epochs are acknowledged out of order (P1), or the proof is of another gate.
    pub fn acknowledged(&mut self, durable: DurableEpoch) -> Committed {
        assert!(durable.gate == self.commit.gate(), "R4: a durable epoch of another gate");
        self.commit.acknowledged(durable.epoch)
    }

    /// Makes the proof that the machine may run alone in `term` (P2). The set of the term excludes
    /// the standby (R4): an arbiter grants a term with a set of the winner's images alone.
    ///
    /// # Panics
    /// When the term is older than one won before.
    pub fn alone(&mut self, term: Term) -> Alone {
        self.commit.alone(term)
    }
}
