//! The entries of the list: one order for everything that happens to all own disks of a machine
//! (R1).

use alloc::vec::Vec;

pub use io_gate::host::Seq;
use serde::{Deserialize, Serialize};

/// A range of bytes of one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Extent {
    /// The disk, by its place in the machine.
    pub disk: u16,
    /// Its first byte.
    pub start: u64,
    /// Number of bytes.
    pub len: u64,
}

impl Extent {
    /// The byte after its last one.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }

    /// Whether both have a byte in common.
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
    /// The checkpoint's memory has the same bytes at this address. Compared with the staged copy
    /// of the pages, never with memory itself (R1).
    Memory(u64),
}

/// What happens to a disk.
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
    /// Everything before becomes durable, on all disks.
    Flush,
    /// A block of the primary's image, as it is at this place of the list (R8).
    Copy {
        /// Where.
        extent: Extent,
        /// What.
        bytes: Vec<u8>,
    },
    /// The hash of a part of the primary's image, as it is at this place of the list: what the
    /// standby has here must be the same (R8, R9).
    Compare {
        /// Where.
        extent: Extent,
        /// The hash, by [`hash`](super::resync::hash).
        hash: u128,
    },
}

/// What an entry costs beside its bytes, so that many empty ones have a bound too.
const OVERHEAD: u64 = 64;

impl Operation {
    /// The bytes of the disk that it concerns; `None` if all.
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

    /// Whether it changes the image.
    #[must_use]
    pub fn changes(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Zero { .. } | Self::Copy { .. })
    }

    /// Bytes that it takes in a list or a queue. A payload that is in memory counts in full: the
    /// standby copies it out.
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

/// An operation and its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number.
    pub seq: Seq,
    /// What happens.
    pub operation: Operation,
}
