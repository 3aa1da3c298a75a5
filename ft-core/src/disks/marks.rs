//! Where the images of a pair may differ (R3, R8): the marks that one side keeps for one image.
//!
//! - An *intent* is a coarse mark. It is durable before a write in its extent begins, so that a
//!   power loss cannot leave a write without a mark. After a crash the whole extent is compared.
//! - A *fine mark* names one block. Fine marks take the place of a coarse mark once they are
//!   durable, when the peer is gone.
//! - A mark goes only when everything under it is durable on **both** sides.
//!
//! ```text
//!    begin -> wanted -(next_write)-> writing -(written)-> durable: the write may begin
//! ```
//!
//! A write that meets a mark whose removal is under way waits until the mark is durable again.

use alloc::collections::{BTreeMap, BTreeSet};

use super::{Area, DiskId, Extent, Geometry, Seq};
use crate::deliberate;

/// See the module.
#[derive(Clone, Debug)]
pub struct Marks {
    geometry: Geometry,
    durable: Area,
    writing: Option<Area>,
    wanted: Area,
    /// The blocks that this process has written, each with its last entry: its coarse marks cover
    /// these.
    blocks: BTreeMap<u64, Seq>,
    /// Coarse marks of an earlier process: which of their blocks were written is not known.
    inherited: BTreeSet<u64>,
    /// Writes that are not performed yet, by coarse extent.
    under_way: BTreeMap<u64, u32>,
    /// The peer is gone: fine marks take the place of coarse ones.
    alone: bool,
}

impl Marks {
    /// The marks of an image, as its area says.
    #[must_use]
    pub fn load(geometry: Geometry, area: Area) -> Self {
        Self {
            geometry,
            writing: None,
            inherited: area.coarse.clone(),
            wanted: area.clone(),
            durable: area,
            blocks: BTreeMap::new(),
            under_way: BTreeMap::new(),
            alone: true,
        }
    }

    /// The marks to be made durable.
    #[must_use]
    pub fn wanted(&self) -> &Area {
        &self.wanted
    }

    /// A write is about to begin.
    pub fn begin(&mut self, extent: &Extent, seq: Seq) {
        for coarse in self.geometry.extents(extent) {
            self.wanted.coarse.insert(coarse);
            *self.under_way.entry(coarse).or_default() += 1;
        }
        for block in self.geometry.blocks(extent) {
            let last = self.blocks.entry(block).or_default();
            *last = seq.max(*last);
        }
    }

    /// Whether the write may begin: its intents are durable, and none is being removed (R3).
    #[must_use]
    pub fn covers(&self, extent: &Extent) -> bool {
        let kept = |coarse: &u64| {
            self.writing.as_ref().is_none_or(|area| area.coarse.contains(coarse))
                || deliberate!(UnmarkingIgnored)
        };
        deliberate!(IntentAfterWrite)
            || self
                .geometry
                .extents(extent)
                .all(|coarse| self.durable.coarse.contains(&coarse) && kept(&coarse))
    }

    /// The write has succeeded or failed. Its blocks stay marked until they are durable on both
    /// sides.
    pub fn performed(&mut self, extent: &Extent) {
        for coarse in self.geometry.extents(extent) {
            if let Some(count) = self.under_way.get_mut(&coarse) {
                *count -= 1;
                if *count == 0 {
                    self.under_way.remove(&coarse);
                }
            }
        }
        self.refine();
    }

    /// The area to write now, if the stored one differs from the wanted one. Only one write runs at
    /// a time: call [`written`](Self::written) when it is durable.
    pub fn next_write(&mut self) -> Option<&Area> {
        if self.writing.is_some() || self.wanted == self.durable {
            return None;
        }
        self.writing = Some(self.wanted.clone());
        self.writing.as_ref()
    }

    /// The write of the area is durable.
    pub fn written(&mut self) {
        if let Some(area) = self.writing.take() {
            self.durable = area;
        }
        self.refine();
    }

    /// The durable marks.
    #[must_use]
    pub fn durable(&self) -> &Area {
        &self.durable
    }

    /// Everything up to `seq` is durable on both sides, and each side's sidecar says so.
    pub fn both_durable(&mut self, seq: Seq) {
        let before = self.blocks.len();
        self.blocks.retain(|_, last| *last > seq);
        if self.blocks.len() == before {
            return;
        }
        self.wanted.cleared = self.wanted.cleared.max(seq);
        self.drop_coarse();
    }

    /// The images are equal up to `seq`, and durable, at a moment with the number `point`: only
    /// what was written after it is marked. From now on the marks belong to this peer.
    pub fn equal(&mut self, peer: DiskId, point: u128, seq: Seq) {
        self.blocks.retain(|_, last| *last > seq);
        self.inherited.clear();
        self.wanted.fine.clear();
        (self.wanted.peer, self.wanted.point, self.wanted.cleared) = (Some(peer), point, seq);
        self.alone = false;
        self.drop_coarse();
    }

    /// A peer connects, and recording begins. From now on the last entry of each block is kept:
    /// once the images are [equal](Self::equal), only marks of later entries stay.
    pub fn peer_connects(&mut self) {
        self.alone = false;
        if deliberate!(MarksClearedAtConnect) {
            self.blocks.clear();
            self.inherited.clear();
            self.wanted.fine.clear();
            self.drop_coarse();
        }
    }

    /// The peer is gone: what is not durable on both sides is marked block by block.
    pub fn peer_gone(&mut self) {
        self.alone = true;
        self.refine();
    }

    /// Drops the coarse marks that cover no marked block any more.
    fn drop_coarse(&mut self) {
        let stands: BTreeSet<u64> =
            self.blocks.keys().map(|block| self.geometry.of_block(*block)).collect();
        let (inherited, under_way) = (&self.inherited, &self.under_way);
        self.wanted.coarse.retain(|coarse| {
            stands.contains(coarse) || inherited.contains(coarse) || under_way.contains_key(coarse)
        });
    }

    /// While the peer is gone: sets the fine marks. Once they are durable, drops the coarse marks
    /// of extents without a write under way.
    fn refine(&mut self) {
        if !self.alone {
            return;
        }
        self.wanted.fine.extend(self.blocks.keys());
        let (durable, geometry, under_way) = (&self.durable.fine, self.geometry, &self.under_way);
        let at_rest = |block: &u64| !under_way.contains_key(&geometry.of_block(*block));
        self.blocks.retain(|block, _| !(durable.contains(block) && at_rest(block)));
        self.drop_coarse();
    }

    /// The blocks that may differ, and the extents in which any block may differ.
    #[must_use]
    pub fn differences(&self) -> (BTreeSet<u64>, BTreeSet<u64>) {
        let mut fine = self.wanted.fine.clone();
        fine.extend(self.blocks.keys());
        (fine, self.inherited.clone())
    }

    /// As an [`Area`] that a peer can read: coarse marks only where nothing finer is known.
    #[must_use]
    pub fn described(&self) -> Area {
        let (fine, coarse) = self.differences();
        Area { fine, coarse, ..self.wanted.clone() }
    }
}
