//! The pause of the guest for a checkpoint, and how long each part of it took.

use std::time::Instant;

use super::status::EngineStats;

/// The time at which each part of a pause ended.
pub(super) struct Pause {
    pub(super) begun: Instant,
    pub(super) kicked: Instant,
    pub(super) sealed: Instant,
    pub(super) saved: Instant,
    pub(super) collected: Instant,
    pub(super) copied: Instant,
    pub(super) resumed: Instant,
}

impl Pause {
    pub(super) fn begin() -> Self {
        let begun = Instant::now();
        Self {
            begun,
            kicked: begun,
            sealed: begun,
            saved: begun,
            collected: begun,
            copied: begun,
            resumed: begun,
        }
    }

    pub(super) fn note(&self, stats: &mut EngineStats, dirty: u64) {
        stats.checkpoints += 1;
        stats.dirty_pages.add(dirty);
        stats.pause.add_time(self.resumed - self.begun);
        stats.kick.add_time(self.kicked - self.begun);
        stats.seal.add_time(self.sealed - self.kicked);
        stats.save.add_time(self.saved - self.sealed);
        stats.collect.add_time(self.collected - self.saved);
        stats.copy.add_time(self.copied - self.collected);
        stats.resume.add_time(self.resumed - self.copied);
    }
}
