//! An image with a volatile cache: a power loss keeps any of the writes that were not synced.

use std::collections::VecDeque;

use ft_core::disks::Extent;

use crate::random::Random;

/// Bytes of a sector, and number of sectors.
pub(super) const SECTOR: u64 = 8;
pub(super) const SECTORS: usize = 16;

pub(super) type Content = [u64; SECTORS];

#[derive(Clone, Default)]
pub(super) struct Image {
    /// What a read finds.
    pub(super) content: Content,
    /// What survives a power loss for certain.
    pub(super) durable: Content,
    /// Written and not synced, in order.
    pending: VecDeque<(usize, u64)>,
    /// Number of writes that were synced.
    synced: usize,
    pub(super) inode: u64,
    /// This many of the next writes, and syncs, fail.
    pub(super) failing: [u32; 2],
}

fn sectors(extent: &Extent) -> std::ops::Range<usize> {
    (extent.start / SECTOR) as usize..(extent.end() / SECTOR) as usize
}

impl Image {
    pub(super) fn read(&self, extent: &Extent) -> Vec<u8> {
        self.content[sectors(extent)].iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    pub(super) fn write(&mut self, extent: &Extent, bytes: &[u8]) -> Result<(), String> {
        if self.fails(0) {
            return Err("input/output error".into());
        }
        for (sector, value) in sectors(extent).zip(bytes.chunks_exact(SECTOR as usize)) {
            let value = u64::from_le_bytes(value.try_into().expect("a sector"));
            self.content[sector] = value;
            self.pending.push_back((sector, value));
        }
        Ok(())
    }

    fn fails(&mut self, which: usize) -> bool {
        let fails = self.failing[which] > 0;
        self.failing[which] -= u32::from(fails);
        fails
    }

    /// What a sync that begins now will make durable: all writes so far, by number.
    pub(super) fn sync_begins(&self) -> usize {
        self.synced + self.pending.len()
    }

    /// The sync has ended. After one that failed, the kernel takes the pages for clean: a second
    /// one ends well, and writes nothing.
    pub(super) fn sync_ends(&mut self, begun: usize) -> Result<(), String> {
        let failed = self.fails(1);
        while self.synced < begun
            && let Some((sector, value)) = self.pending.pop_front()
        {
            self.synced += 1;
            if !failed {
                self.durable[sector] = value;
            }
        }
        if failed { Err("the sync failed: input/output error".into()) } else { Ok(()) }
    }

    /// What a sector may hold after a power loss, in the order of its writes: what is durable, and
    /// each write that was not synced. The last one is what a read finds.
    pub(super) fn possible(&self, sector: usize) -> Vec<u64> {
        let unsynced = self.pending.iter().filter(|(at, _)| *at == sector);
        std::iter::once(self.durable[sector]).chain(unsynced.map(|(_, value)| *value)).collect()
    }

    pub(super) fn lose_power(&mut self, random: &mut Random) {
        let pending = std::mem::take(&mut self.pending);
        self.synced = 0;
        for (sector, value) in pending {
            if random.one_in(2) {
                self.durable[sector] = value;
            }
        }
        self.content = self.durable;
    }
}
