//! The messages of the two sides about their own disks. The version of the wire protocol covers
//! their encoding. They are sent only if both sides have own disks.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Area, DiskId, Entry, Extent, Lineage, Seq, Sidecar};
use crate::Epoch;

/// The state of the standby's queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The last entry up to which all are performed.
    pub performed: Seq,
    /// The last entry up to which all are durable.
    pub durable: Seq,
    /// The last entry up to which all are durable, as the standby's sidecar records it.
    pub recorded: Seq,
    /// The time that the standby needs to perform its queue, by its own measurements.
    pub drain: Duration,
}

/// The checkpoint with which the images become equal (R6).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cover {
    /// The last entry of its list: all resync entries are before it.
    pub end: Seq,
    /// The primary's image.
    pub disk: DiskId,
    /// Its generation.
    pub lineage: Lineage,
    /// A random number for [`Area::point`].
    pub point: u128,
}

/// A message about own disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// From the standby, first: what its image is, and its marks (`None`: damaged).
    Describe {
        /// Its sidecar.
        sidecar: Box<Sidecar>,
        /// Its marks.
        area: Option<Area>,
    },
    /// From the primary: the list begins behind this entry (R12).
    Begin {
        /// The last entry before.
        last: Seq,
        /// Whether blocks will be overwritten: the standby's image is then inconsistent until it
        /// is covered, and durably marked as such before the first block (R8).
        resync: bool,
    },
    /// From the primary: entries of the list.
    Entries {
        /// The epoch with which they are performed; `None`: at once, before the first checkpoint.
        epoch: Option<Epoch>,
        /// The entries.
        entries: Vec<Entry>,
    },
    /// From the primary, with the first checkpoint.
    Cover(Cover),
    /// From the primary: both sides' sidecars say that everything up to this entry is durable.
    BothDurable(Seq),
    /// From the standby.
    Report(Report),
    /// From the standby: the comparison of this entry has found a difference.
    Different {
        /// The entry.
        seq: Seq,
        /// What was compared.
        extent: Extent,
    },
}

/// The bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot decode a message about own disks: expected a whole message and nothing after it, found {found} other bytes"
)]
pub struct MessageError {
    /// How many bytes.
    pub found: usize,
}

impl Message {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).unwrap_or_default()
    }

    /// Decodes a message. The bytes come from the peer and may be anything.
    ///
    /// # Errors
    /// When the bytes are not a message, or bytes are left over.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        match postcard::take_from_bytes(bytes) {
            Ok((message, [])) => Ok(message),
            _ => Err(MessageError { found: bytes.len() }),
        }
    }
}
