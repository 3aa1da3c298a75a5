//! How the standby's image becomes equal to the primary's (R8). It is the disks' part of the copy
//! that comes before the first checkpoint: the guest runs, and its gate is open.
//!
//! Each block is an entry of the list, at the place where the primary reads it. The primary's lane
//! reads it after the overlapping operations before it, and before those behind it. So the standby
//! never writes an older block over a newer write. For an extent that may differ in any block, the
//! primary sends a hash. The standby compares the hash at the same place of the list, and the
//! primary copies only the extents that differ.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;

use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::{Area, DiskId, Extent, Geometry, PairId, Relation, Seq, Sidecar, State};
use crate::deliberate;

/// The hash of a part of an image. `seed` is the session's number, so that a guest cannot prepare
/// two contents with the same hash.
#[must_use]
pub fn hash(bytes: &[u8], seed: u64) -> u128 {
    xxh3_128_with_seed(bytes, seed)
}

/// One side, as it describes itself.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// Its sidecar.
    pub sidecar: &'a Sidecar,
    /// Its marks; `None` if they are damaged.
    pub area: Option<&'a Area>,
}

/// What a resync copies and compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Only marked blocks differ.
    Marked {
        /// Blocks to copy.
        copy: BTreeSet<u64>,
        /// Coarse extents to compare.
        compare: BTreeSet<u64>,
    },
    /// Any block may differ: all are compared.
    Full {
        /// Why.
        why: &'static str,
    },
}

/// This standby cannot be made equal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The standby's image belongs to another machine.
    #[error(
        "the standby's image belongs to another machine: expected {expected:?}, found {found:?}; give the standby an image of this machine, or a new one"
    )]
    OtherPair {
        /// This machine.
        expected: PairId,
        /// The machine of the image.
        found: PairId,
    },
    /// Both sides have the same image.
    #[error("both sides use one image ({0:?}): an own disk needs an image on each host")]
    SameImage(DiskId),
    /// The images have different sizes.
    #[error(
        "the standby's image has {found} bytes, expected {expected}: make an image of that size"
    )]
    Size {
        /// This side's.
        expected: u64,
        /// The standby's.
        found: u64,
    },
    /// The standby's image has failed.
    #[error("the standby's image has failed: replace the disk, and make a new image")]
    Failed,
    /// The standby's image has writes that this image lacks.
    #[error(
        "the standby's image is of generation {theirs}, and the primary's image ({ours}) does not descend from it: decide which image to keep, and replace the other by a new one"
    )]
    NotAnAncestor {
        /// This side's.
        ours: super::Generation,
        /// The standby's.
        theirs: super::Generation,
    },
}

/// Decides what is to be copied to a standby.
///
/// # Errors
/// When the standby's image must not be used, or not be overwritten.
pub fn plan(primary: Side<'_>, standby: Side<'_>) -> Result<Plan, Refusal> {
    let (ours, theirs) = (primary.sidecar, standby.sidecar);
    if ours.pair != theirs.pair {
        return Err(Refusal::OtherPair { expected: ours.pair, found: theirs.pair });
    }
    if ours.disk == theirs.disk {
        return Err(Refusal::SameImage(ours.disk));
    }
    if ours.image.size != theirs.image.size {
        return Err(Refusal::Size { expected: ours.image.size, found: theirs.image.size });
    }
    if theirs.state == State::Failed {
        return Err(Refusal::Failed);
    }
    let ours_is = ours.lineage.current();
    if let Some(theirs) = theirs.perhaps_won(&ours.lineage) {
        return Err(Refusal::NotAnAncestor { ours: ours_is, theirs });
    }
    let chains = match theirs.lineage.relation(&ours.lineage) {
        Relation::Same | Relation::Ancestor => true,
        Relation::Unknown => false,
        Relation::Diverged if !theirs.lineage.has_run() => false,
        Relation::Descendant | Relation::Diverged => {
            let theirs = theirs.lineage.current();
            return Err(Refusal::NotAnAncestor { ours: ours_is, theirs });
        }
    };
    let (Some(our_area), Some(their_area)) = (primary.area, standby.area) else {
        return Ok(Plan::Full { why: "the marks of a side are damaged" });
    };
    let mutual = our_area.peer == Some(theirs.disk)
        && their_area.peer == Some(ours.disk)
        && our_area.point == their_area.point;
    if !chains {
        return Ok(Plan::Full { why: "the generations of the two images do not chain" });
    }
    if !mutual && !deliberate!(MarksOfAnother) {
        return Ok(Plan::Full { why: "the marks belong to another pair of images" });
    }
    if is_set_back((ours, our_area), (theirs, their_area)) {
        return Ok(Plan::Full { why: "an image was set back to an earlier state" });
    }
    let mut copy = our_area.fine.clone();
    let mut compare = our_area.coarse.clone();
    if !deliberate!(TheirMarksIgnored) {
        copy.extend(&their_area.fine);
        compare.extend(&their_area.coarse);
    }
    Ok(Plan::Marked { copy, compare })
}

/// Whether an image was set back to an older state. A side removes marks up to `cleared` only after
/// the other image is durable up to `cleared`.
fn is_set_back(ours: (&Sidecar, &Area), theirs: (&Sidecar, &Area)) -> bool {
    let set_back = theirs.0.durable < ours.1.cleared || ours.0.durable < theirs.1.cleared;
    if deliberate!(MarksOfAnother) {
        return false;
    }
    set_back && !deliberate!(SetBackUnnoticed)
}

/// A part of the image that is to be made equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where.
    pub extent: Extent,
    /// Whether to send its hash, and not its bytes.
    pub compare: bool,
}

/// A resync that is under way. If the session ends, the next begins from the marks, which have not
/// changed.
#[derive(Clone, Debug)]
pub struct Resync {
    geometry: Geometry,
    size: u64,
    todo: VecDeque<Piece>,
    /// Pieces that are placed in the list and not performed by the standby.
    placed: BTreeMap<Seq, Piece>,
    total: u64,
}

impl Resync {
    /// The resync of one disk of this size.
    #[must_use]
    pub fn new(geometry: Geometry, disk: u16, size: u64, plan: &Plan) -> Self {
        let mut todo = VecDeque::new();
        let mut add = |unit: u64, number: u64, compare| {
            let start = number.saturating_mul(unit);
            let len = unit.min(size.saturating_sub(start));
            if len > 0 {
                todo.push_back(Piece { extent: Extent { disk, start, len }, compare });
            }
        };
        match plan {
            Plan::Full { .. } => {
                (0..size.div_ceil(geometry.coarse)).for_each(|at| add(geometry.coarse, at, true));
            }
            Plan::Marked { copy, compare } => {
                copy.iter().for_each(|block| add(geometry.fine, *block, false));
                compare.iter().for_each(|extent| add(geometry.coarse, *extent, true));
            }
        }
        let total = todo.iter().map(|piece: &Piece| piece.extent.len).sum();
        Self { geometry, size, todo, placed: BTreeMap::new(), total }
    }

    /// The next piece to read, if anything is left. Place it in the list, then call
    /// [`placed`](Self::placed).
    #[must_use]
    pub fn next(&self) -> Option<Piece> {
        self.todo.front().copied()
    }

    /// The next piece was placed in the list as entry `seq`.
    pub fn placed(&mut self, seq: Seq) {
        if let Some(piece) = self.todo.pop_front() {
            self.placed.insert(seq, piece);
        }
    }

    /// The standby has found a difference: the blocks of the piece are copied. Ignored for what
    /// was not asked.
    pub fn different(&mut self, seq: Seq) {
        let Some(piece) = self.placed.get(&seq).filter(|piece| piece.compare).copied() else {
            return;
        };
        for block in blocks(self.geometry, self.size, &piece.extent) {
            self.total += block.len;
            self.todo.push_front(Piece { extent: block, compare: false });
        }
    }

    /// The standby has performed everything up to `seq`.
    pub fn performed(&mut self, seq: Seq) {
        self.placed.retain(|placed, _| *placed > seq);
    }

    /// Whether everything is equal, but for what the guest writes.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.todo.is_empty() && self.placed.is_empty()
    }

    /// Bytes left, and bytes in total.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        let pieces = self.todo.iter().chain(self.placed.values());
        (pieces.map(|piece| piece.extent.len).sum(), self.total)
    }
}

/// The fine blocks of an extent.
fn blocks(geometry: Geometry, size: u64, extent: &Extent) -> Vec<Extent> {
    let (disk, fine) = (extent.disk, geometry.fine);
    let starts = (extent.start / fine..extent.end().min(size).div_ceil(fine)).map(|at| at * fine);
    starts.map(|start| Extent { disk, start, len: fine.min(size - start) }).collect()
}
