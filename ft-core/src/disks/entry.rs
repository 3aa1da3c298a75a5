//! The entries of the list (R1). The list orders every operation on every own disk of a machine.

use alloc::vec::Vec;

pub use io_gate::host::Seq;
use serde::{Deserialize, Serialize};

/// A range of bytes of one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Extent {
    /// The disk, by its place in the machine.
    pub disk: u16,
    /// Offset of the first byte.
    pub start: u64,
    /// Number of bytes.
    pub len: u64,
}

impl Extent {
    /// Offset of the byte after the last one.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }

    /// Whether the two extents share a byte.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.disk == other.disk && self.start < other.end() && other.start < self.end()
    }
}

/// The bytes of a write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Payload {
    /// The bytes themselves.
    Inline(Vec<u8>),
    /// The address in the checkpoint's memory that has the same bytes. They are compared with the
    /// staged copy of the pages, never with memory itself (R1).
    Memory(u64),
}

/// An operation on a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Bytes are written.
    Write {
        /// Where.
        extent: Extent,
        /// What.
        payload: Payload,
    },
    /// Bytes become zero: a discard, or a write of zeroes.
    Zero {
        /// Where.
        extent: Extent,
    },
    /// All entries before this one become durable, on all disks.
    Flush,
    /// A block of the primary's image, read at this place of the list (R8).
    Copy {
        /// Where.
        extent: Extent,
        /// What.
        bytes: Vec<u8>,
    },
    /// The hash of a part of the primary's image, read at this place of the list. The standby's
    /// image must have the same hash at this place (R8, R9).
    Compare {
        /// Where.
        extent: Extent,
        /// The hash, by [`hash`](super::resync::hash).
        hash: u128,
    },
}

/// Bytes that each entry counts beside its payload, so that many empty entries have a bound too.
const OVERHEAD: u64 = 64;

impl Operation {
    /// The extent that the operation concerns; `None` for a flush, which concerns all disks.
    #[must_use]
    pub fn extent(&self) -> Option<Extent> {
        match self {
            Self::Write { extent, .. }
            | Self::Zero { extent }
            | Self::Copy { extent, .. }
            | Self::Compare { extent, .. } => Some(*extent),
            Self::Flush => None,
        }
    }

    /// Whether the operation changes the image.
    #[must_use]
    pub fn changes(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Zero { .. } | Self::Copy { .. })
    }

    /// Bytes that the operation counts in a list or a queue. A payload in the checkpoint's memory
    /// counts in full, since the standby copies it out.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let payload = match self {
            Self::Write { extent, .. } => extent.len,
            Self::Copy { bytes, .. } => bytes.len() as u64,
            Self::Zero { .. } | Self::Flush | Self::Compare { .. } => 0,
        };
        payload.saturating_add(OVERHEAD)
    }
}

/// An operation and its place in the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The number of its place.
    pub seq: Seq,
    /// The operation.
    pub operation: Operation,
}
