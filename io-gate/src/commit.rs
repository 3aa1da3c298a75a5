//! The right to let effects out: one authority per virtual machine, and the proofs that it makes.

use core::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// A numbered period of guest execution that ends with a checkpoint. Epoch 0 is the first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl core::fmt::Display for Epoch {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A number that only grows. Each term is won once from the arbiter, by one process, which may then
/// perform effects for the virtual machine (P2). In term 0 no arbiter was asked.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Term(pub u64);

impl Term {
    /// The term that a takeover must win.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl core::fmt::Display for Term {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Identifies one gate in the process. A proof is valid only at the gate for which it was made.
/// Backends perform only effects that their own gate has released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateId(u64);

impl GateId {
    pub(crate) fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The one authority over a gate. [`new_gate`](crate::host::new_gate) makes it with the gate and
/// moves it to the protocol core. It is neither `Clone` nor constructible elsewhere (P1).
///
/// ```compile_fail,E0599
/// # let (_ledger, authority) = io_gate::host::new_gate();
/// let second = authority.clone();
/// ```
#[derive(Debug)]
pub struct CommitAuthority {
    gate: GateId,
    acknowledged: Option<Epoch>,
    term: Term,
}

impl CommitAuthority {
    pub(crate) fn new(gate: GateId) -> Self {
        Self { gate, acknowledged: None, term: Term(0) }
    }

    pub(crate) fn gate(&self) -> GateId {
        self.gate
    }

    /// Makes the proof for `epoch` and all epochs before it. Call it when the standby has
    /// acknowledged the whole of `epoch`.
    ///
    /// # Panics
    /// When epochs are acknowledged out of order: the protocol core is wrong, and P1 could be
    /// broken.
    pub fn acknowledged(&mut self, epoch: Epoch) -> Committed {
        assert!(
            self.acknowledged.is_none_or(|last| last < epoch),
            "P1: epoch {epoch} acknowledged after {:?}",
            self.acknowledged
        );
        self.acknowledged = Some(epoch);
        Committed { gate: self.gate, epoch }
    }

    /// Makes the proof that the machine may run alone in `term` (P2). It covers each effect that is
    /// staged until the gate is closed again.
    ///
    /// # Panics
    /// When the term is older than one won before: terms only grow (P2).
    pub fn alone(&mut self, term: Term) -> Alone {
        assert!(self.term <= term, "P2: the right to run alone in term {term} after {}", self.term);
        self.term = term;
        // `acknowledged` stays as it is: a later session with a standby continues the gate's epoch
        // numbers.
        Alone { gate: self.gate, term }
    }
}

/// Proof that all effects up to an epoch may leave. A release spends it by value.
#[derive(Debug)]
#[must_use = "effects stay held until the proof is spent on the ledger"]
pub struct Committed {
    pub(crate) gate: GateId,
    pub(crate) epoch: Epoch,
}

impl Committed {
    /// The last epoch that the proof covers.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
}

/// Proof that the machine may perform effects without a standby.
#[derive(Debug)]
#[must_use = "the gate holds until the proof is spent on the ledger"]
pub struct Alone {
    pub(crate) gate: GateId,
    pub(crate) term: Term,
}

impl Alone {
    /// The term in which the right was won.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }
}
