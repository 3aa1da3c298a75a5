//! Own disks: each host has an image of its own, and a disk that only the pair can see is state of
//! the machine, like its memory. The rules R1 to R12 are in `docs/own-disks.md`.
//!
//! - [`Entry`], [`List`]: the primary's operations on its images, in one order (R1, R2, R12);
//! - [`Lane`], [`Queue`]: the order in which a side performs operations; the entries that the
//!   standby has not performed yet (R1, R5);
//! - [`Marks`], [`Area`]: where the two images may differ (R3), and how the medium keeps it;
//! - [`Sidecar`], [`Lineage`]: the identity, state and generation of an image (R6, R11);
//! - [`set`]: which images the arbiter records as equal (R6, R7);
//! - [`resync`]: how an image becomes equal again (R8, R9);
//! - [`Holds`]: what an epoch waits for beside its acknowledgement (R4).
//!
//! Nothing here does I/O or knows the time. A machine without own disks uses none of it.

mod area;
mod entry;
mod generation;
mod holds;
mod lane;
mod list;
mod marks;
mod message;
mod queue;
pub mod resync;
pub mod set;
mod sidecar;
#[cfg(test)]
mod tests;

pub use area::{Area, AreaError, AreaLayout, Geometry, MARK_BLOCK};
pub use entry::{Entry, Extent, Operation, Payload, Seq};
pub use generation::{DiskId, Generation, IdError, Lineage, MAX_PARENTS, PairId, Relation};
pub use holds::{FlushMode, Holds};
pub use lane::{Lane, Reach, Ticket};
pub use list::{Limits, List, Sealed};
pub use marks::Marks;
pub use message::{Cover, Message, MessageError, Report};
pub use queue::{Queue, QueueError};
pub use sidecar::{ImageIdentity, SLOT, Sidecar, SidecarError, Slots, State};

/// An event at the disks of a pair, for [`Primary`](crate::primary::Primary).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The list of an epoch ends here. Given before the epoch's
    /// [`Sealed`](crate::primary::Event::Sealed).
    Listed {
        /// The epoch.
        epoch: crate::Epoch,
        /// The last entry of the epoch's list, or of a list before.
        end: Seq,
        /// The last flush that the guest has seen complete.
        flushed: Seq,
    },
    /// The standby's images are durable up to an entry.
    StandbyDurable {
        /// The link to the standby.
        link: crate::LinkId,
        /// The last durable entry.
        durable: Seq,
    },
    /// An image of the standby has failed, or differs.
    StandbyFailed {
        /// The link to the standby.
        link: crate::LinkId,
        /// What has failed.
        reason: alloc::string::String,
    },
    /// The arbiter has recorded the standby's disks as members of the set.
    Enlarged {
        /// The link to the standby.
        link: crate::LinkId,
    },
    /// After a takeover: this side's images are durable up to an entry.
    OwnDurable {
        /// The last durable entry.
        durable: Seq,
    },
    /// An image of this side has failed (R5).
    OwnFailed {
        /// What has failed.
        reason: alloc::string::String,
    },
}

/// What a standby may do with its images (R7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The set does not name them, and may not name them yet.
    Syncing,
    /// They are durable up to the covering checkpoint: the set may name them from now on.
    Covered,
    /// One of them has failed.
    Failed {
        /// What has failed.
        reason: alloc::string::String,
    },
}
