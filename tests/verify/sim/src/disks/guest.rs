//! A guest that knows what its disk must hold, and tells the outside which of its writes are
//! flushed.

use ft_core::disks::{Extent, Seq};
use serde::{Deserialize, Serialize};

use super::image::{SECTOR, SECTORS};
use crate::random::{Random, mix};

/// Pages of memory; each has the size of a sector.
pub(super) const PAGES: usize = 4;
const DEPTH: usize = 6;

/// For each sector, a place in the history of what was written there.
pub(super) type Places = [usize; SECTORS];

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    Write(Extent),
    /// What was complete when the flush was staged.
    Flush(Places),
    Read(Extent),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) head: u64,
    pub(super) kind: Kind,
    /// The entry of the list, and the process that has staged it.
    pub(super) seq: Seq,
    pub(super) by: u64,
    /// The places of a write, by its sectors.
    places: Vec<usize>,
}

/// What the outside is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Output {
    pub(super) serial: u64,
    pub(super) history: u64,
    pub(super) flushed: Places,
}

/// The whole machine: what a checkpoint carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Guest {
    pub(super) history: u64,
    pub(super) outputs: u64,
    /// The places after the last staged write.
    pub(super) issued: Places,
    completed: Places,
    pub(super) flushed: Places,
    /// The entry of the last flush that it has seen complete.
    pub(super) flush: Seq,
    /// Number of flushes that it has seen complete.
    pub(super) flushes: u64,
    pub(super) outstanding: Vec<Request>,
    next_head: u64,
    pub(super) memory: [u64; PAGES],
    /// Outputs that are held or on their way. Part of a checkpoint: they may have to leave again.
    pub(super) pending: Vec<Output>,
}

impl Guest {
    /// Boots from a disk that holds the last of these histories. What is flushed is only what was
    /// told: the rest may be in the host's cache.
    pub(super) fn boot(lengths: Places, flushed: Places, history: u64) -> Self {
        let completed = lengths.map(|length| length - 1);
        Self {
            history,
            outputs: 0,
            issued: lengths,
            completed,
            flushed,
            flush: Seq(0),
            flushes: 0,
            outstanding: Vec::new(),
            next_head: 0,
            memory: [0; PAGES],
            pending: Vec::new(),
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        self.outstanding.len() >= DEPTH
    }

    pub(super) fn think(&mut self, random: &mut Random) {
        self.history = mix(self.history, random.next());
        // A page may become zero, and equal to others.
        self.memory[random.index(PAGES)] = if random.one_in(4) { 0 } else { self.history };
    }

    pub(super) fn output(&mut self) -> Output {
        self.outputs += 1;
        self.history = mix(self.history, self.outputs);
        Output { serial: self.outputs, history: self.history, flushed: self.flushed }
    }

    /// Stages a request.
    pub(super) fn ask(&mut self, kind: Kind, seq: Seq, by: u64) -> u64 {
        self.next_head += 1;
        let mut places = Vec::new();
        if let Kind::Write(extent) = &kind {
            for sector in sectors(extent) {
                places.push(self.issued[sector]);
                self.issued[sector] += 1;
            }
        }
        self.outstanding.push(Request { head: self.next_head, kind, seq, by, places });
        self.next_head
    }

    /// A request completes; returns it, or nothing if a reset has cancelled its completion.
    pub(super) fn complete(&mut self, head: u64) -> Option<Request> {
        let at = self.outstanding.iter().position(|request| request.head == head)?;
        let request = self.outstanding.remove(at);
        match &request.kind {
            Kind::Write(extent) => {
                for (sector, place) in sectors(extent).zip(&request.places) {
                    self.completed[sector] = self.completed[sector].max(*place);
                }
            }
            Kind::Flush(places) => {
                for (flushed, place) in self.flushed.iter_mut().zip(places) {
                    *flushed = (*flushed).max(*place);
                }
                self.flush = self.flush.max(request.seq);
                self.flushes += 1;
            }
            Kind::Read(_) => {}
        }
        self.history = mix(self.history, head);
        Some(request)
    }

    pub(super) fn completed(&self) -> Places {
        self.completed
    }

    /// R10: the completions of what is under way are cancelled.
    pub(super) fn reset(&mut self) {
        self.outstanding.clear();
    }
}

pub(super) fn sectors(extent: &Extent) -> std::ops::Range<usize> {
    (extent.start / SECTOR) as usize..(extent.end() / SECTOR) as usize
}

/// One to three sectors; `local`: mostly at the beginning of the disk, so that other parts stay as
/// they are for long.
pub(super) fn some_extent(random: &mut Random, local: bool) -> Extent {
    let len = 1 + random.index(3);
    let room = if local && !random.one_in(32) { 4 } else { SECTORS };
    let start = random.index(room + 1 - len) as u64 * SECTOR;
    Extent { disk: 0, start, len: len as u64 * SECTOR }
}
