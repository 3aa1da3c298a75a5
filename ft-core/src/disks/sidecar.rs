//! The sidecar `IMAGE.kemari` (R11): what an image is, in two slots. Each version is written over
//! the older slot, so that a power loss in the middle leaves the version before.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::{DiskId, Generation, Lineage, PairId, Seq};
use crate::deliberate;

/// Bytes of a slot.
pub const SLOT: usize = 4096;

const MAGIC: [u8; 4] = *b"KMSC";
/// Version of the encoding.
const VERSION: u16 = 1;
/// Magic, version, two spare bytes, the slot's number, the length of the body, the checksum.
const HEADER: usize = 28;

/// What an image may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// The image is whole, as of its generation and its durable entry. Only the arbiter knows
    /// whether it is the newest.
    Whole,
    /// A resync is overwriting the image: its blocks come from two points in time (R8).
    Inconsistent,
    /// An operation on it has failed (R5).
    Failed,
}

/// The file or device that the sidecar describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageIdentity {
    /// Its inode number.
    pub inode: u64,
    /// The number of its file system.
    pub filesystem: u64,
    /// Its size in bytes.
    pub size: u64,
}

/// The content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sidecar {
    /// The machine.
    pub pair: PairId,
    /// The image.
    pub disk: DiskId,
    /// Its generation.
    pub lineage: Lineage,
    /// The generation for which its machine is claiming a term. Durable before the claim: after a
    /// power loss the arbiter's record says whether the claim was won (R6).
    pub pending: Option<Generation>,
    /// Everything up to this entry is durable. It may lag behind; a peer that has cleared marks of
    /// later entries knows another image.
    pub durable: Seq,
    /// What it may be used for.
    pub state: State,
    /// The image with which it was last in a set.
    pub peer: Option<DiskId>,
    /// The image file.
    pub image: ImageIdentity,
}

/// The slots cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SidecarError {
    /// Neither slot is whole.
    #[error(
        "the sidecar has no valid slot: expected one with its checksum, found none; the image needs a full resync"
    )]
    NoValidSlot,
    /// A slot is of another release.
    #[error("the sidecar has encoding {found}, expected {VERSION}: use the release that wrote it")]
    Version {
        /// What was found.
        found: u16,
    },
    /// It describes another file.
    #[error(
        "the sidecar describes image {expected:?}, found {found:?}: the image was replaced; put the former image back, or make a new one"
    )]
    Image {
        /// As the sidecar says.
        expected: ImageIdentity,
        /// As the file is.
        found: ImageIdentity,
    },
}

impl Sidecar {
    /// Whether it describes this image.
    ///
    /// # Errors
    /// When the image was replaced, or has another size.
    pub fn check_image(&self, found: ImageIdentity) -> Result<(), SidecarError> {
        if self.image == found || deliberate!(ImageUnchecked) {
            return Ok(());
        }
        Err(SidecarError::Image { expected: self.image, found })
    }

    /// What the sidecar says before a claim with the generation `next` is made, durably (R6). `won`
    /// is the generation of the arbiter's record, where the claimer has read it.
    ///
    /// The arbiter may carry out an earlier claim of this image late, and the answer may be lost.
    /// If the record has the claim's generation, the claim was won: it continues the lineage. If
    /// the claim was for the same term, its generation is kept. Otherwise the arbiter can no longer
    /// carry it out.
    #[must_use]
    pub fn claiming(&self, won: Option<Generation>, next: Generation) -> Self {
        let mut new = self.clone();
        if deliberate!(PendingForgotten) {
            return Self { pending: Some(next), ..new };
        }
        if let Some(pending) = self.pending.filter(|pending| won == Some(*pending)) {
            new = self.won(pending);
        }
        if new.pending.is_none_or(|pending| pending.term != next.term) {
            new.pending = Some(next);
        }
        new
    }

    /// What the sidecar says once a claim is won: the generation is the record's.
    #[must_use]
    pub fn won(&self, generation: Generation) -> Self {
        Self { lineage: self.lineage.continued(generation), pending: None, ..self.clone() }
    }

    /// The generation of a claim that was perhaps won, and that an image of the lineage `other`
    /// does not continue: the power was lost before the sidecar said so. A lineage that has a
    /// generation of that term decides it: a term is won once.
    pub(super) fn perhaps_won(&self, other: &Lineage) -> Option<Generation> {
        self.pending.filter(|claimed| !other.knows_term(claimed.term))
    }

    /// The bytes of a slot with this number.
    fn encode(&self, number: u64) -> Vec<u8> {
        let body = postcard::to_allocvec(self).unwrap_or_default();
        let mut slot = Vec::with_capacity(SLOT);
        slot.extend_from_slice(&MAGIC);
        slot.extend_from_slice(&VERSION.to_le_bytes());
        slot.extend_from_slice(&[0; 2]);
        slot.extend_from_slice(&number.to_le_bytes());
        slot.extend_from_slice(&(body.len() as u32).to_le_bytes());
        slot.extend_from_slice(&[0; 8]);
        slot.extend_from_slice(&body);
        // A slot has a fixed size and the lists in it a bound, so this never cuts.
        slot.resize(SLOT, 0);
        let sum = xxh3_64(&slot).to_le_bytes();
        slot[HEADER - 8..HEADER].copy_from_slice(&sum);
        slot
    }

    /// Decodes a slot; `None` if it is torn or was never written.
    fn decode(slot: &[u8]) -> Option<Result<(u64, Self), SidecarError>> {
        let mut slot = Vec::from(slot.get(..SLOT)?);
        let field = |at: usize| slot[at..at + 8].try_into().map(u64::from_le_bytes).ok();
        let (number, sum) = (field(8)?, field(HEADER - 8)?);
        let version = u16::from_le_bytes([slot[4], slot[5]]);
        let len = u32::from_le_bytes(slot[16..20].try_into().ok()?) as usize;
        slot[HEADER - 8..HEADER].fill(0);
        if slot[..4] != MAGIC || xxh3_64(&slot) != sum {
            return None;
        }
        if version != VERSION {
            return Some(Err(SidecarError::Version { found: version }));
        }
        let body = slot.get(HEADER..HEADER.checked_add(len)?)?;
        let sidecar: Self = postcard::from_bytes(body).ok()?;
        sidecar.lineage.is_bounded().then_some(Ok((number, sidecar)))
    }
}

/// The two slots, as they are after the last write that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots {
    number: u64,
    sidecar: Sidecar,
}

impl Slots {
    /// A sidecar that was never written; [`next`](Self::next) writes it.
    #[must_use]
    pub fn new(sidecar: Sidecar) -> Self {
        Self { number: 0, sidecar }
    }

    /// Reads the newer valid slot.
    ///
    /// # Errors
    /// When there is none, or it is of another release.
    pub fn read(slots: [&[u8]; 2]) -> Result<Self, SidecarError> {
        let mut newest: Option<(u64, Sidecar)> = None;
        let mut other = None;
        for slot in slots {
            match Sidecar::decode(slot) {
                Some(Ok((number, sidecar)))
                    if newest.as_ref().is_none_or(|(known, _)| number > *known) =>
                {
                    newest = Some((number, sidecar));
                }
                // A slot of another release may be the newer one, so the other slot is not used.
                Some(Err(error)) => other = Some(error),
                _ => {}
            }
        }
        if let Some(error) = other {
            return Err(error);
        }
        let (number, sidecar) = newest.ok_or(SidecarError::NoValidSlot)?;
        Ok(Self { number, sidecar })
    }

    /// The number of this version: it grows by one with each write. 0: never written.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The content.
    #[must_use]
    pub fn sidecar(&self) -> &Sidecar {
        &self.sidecar
    }

    /// The slot to write next, and its bytes. It is the one that does not hold the content now.
    /// Call [`written`](Self::written) when it is durable; one write at a time.
    #[must_use]
    pub fn next(&self, sidecar: &Sidecar) -> (usize, Vec<u8>) {
        let number = self.number + 1;
        let slot = if deliberate!(OneSlotOnly) { 0 } else { (number % 2) as usize };
        (slot, sidecar.encode(number))
    }

    /// The write of [`next`](Self::next) is durable.
    pub fn written(&mut self, sidecar: Sidecar) {
        self.number += 1;
        self.sidecar = sidecar;
    }
}
