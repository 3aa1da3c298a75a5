//! The one authority over the gate of the primary's machine.

use io_gate::host::{Alone, CommitAuthority, DurableCommitAuthority, Term};

/// The authority of a machine whose disks are all shared, or of one with own disks.
#[derive(Debug)]
pub(super) enum Authority {
    /// An epoch is committed when the standby has acknowledged it.
    Acknowledged(CommitAuthority),
    /// The release of an epoch also waits for flushes (R4).
    Durable(DurableCommitAuthority),
}

impl Authority {
    /// The proof that the machine may run alone in a term that it has won (P2).
    pub(super) fn alone(&mut self, term: Term) -> Alone {
        match self {
            Self::Acknowledged(authority) => authority.alone(term),
            Self::Durable(authority) => authority.alone(term),
        }
    }
}
