//! Which pages of guest memory changed since the last look: KVM's log of the vCPUs' writes, OR the bitmap of this
//! process's writes (P8).

use std::sync::Arc;

use kvm_ioctls::VmFd;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, MmapRegion};

use super::dirty_set::DirtySet;
use super::hot::HotPages;
use super::kvm_log::{DirtyError, KvmLog};
use super::{GuestMemory, PageBitmap};
use crate::layout::PAGE_SIZE;

struct Region {
    first_frame: u64,
    mapping: Arc<MmapRegion<PageBitmap>>,
    log: KvmLog,
    set: DirtySet,
    hot: HotPages,
    /// Pages that stay unwatched, by group and bits; a buffer.
    unwatched: Vec<(usize, u64)>,
}

/// Which of the pages that it tells a look has KVM watch again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Watch {
    /// All.
    All,
    /// Those that the guest does not write all the time; the others the next look tells again.
    Cold,
}

/// Collects and resets the dirty pages of one VM.
///
/// P8: whoever writes guest memory in this process does it through vm-memory; KVM logs the rest. Nothing is lost between
/// two looks: KVM clears no bits but such as it told, and [`PageBitmap`] tells each mark once. A page may be told
/// without having changed (KVM does so when the guest first reads a page and it is mapped writable at once; and see [`super::hot`]).
pub struct DirtyTracker {
    vm: Arc<VmFd>,
    manual_protect: bool,
    regions: Vec<Region>,
    frames: Vec<u64>,
}

impl DirtyTracker {
    /// Tracks `memory`, whose regions are KVM's slots 0, 1, ... in ascending order of address.
    pub(crate) fn new(vm: Arc<VmFd>, memory: &GuestMemory, manual_protect: bool) -> Self {
        let regions = memory
            .iter()
            .zip(0..)
            .map(|(region, slot)| {
                let pages = region.len() / PAGE_SIZE;
                Region {
                    first_frame: region.start_addr().raw_value() / PAGE_SIZE,
                    mapping: region.get_mmap(),
                    log: KvmLog { slot, pages },
                    set: DirtySet::new(pages),
                    hot: HotPages::new(pages),
                    unwatched: Vec::new(),
                }
            })
            .collect();
        DirtyTracker { vm, manual_protect, regions, frames: Vec::new() }
    }

    /// The guest page numbers that changed since the last call, ascending, each once; from now on they count as clean.
    ///
    /// Call it with the vCPUs paused and *after* their state was saved when the set must be complete: KVM itself writes
    /// guest memory (steal time, for one) inside vCPU ioctls. While the vCPUs run it is a lower bound, good for pre-copy.
    ///
    /// # Errors
    /// When KVM refuses a call. What was found by then is found again by the next look.
    pub fn collect(&mut self) -> Result<&[u64], DirtyError> {
        let mut frames = std::mem::take(&mut self.frames);
        frames.clear();
        let result = self.look(Watch::All, &mut frames);
        self.frames = frames;
        result.map(|()| self.frames.as_slice())
    }

    /// As [`collect`](Self::collect), appending to a buffer of the caller's; but pages that the guest writes in nearly every
    /// epoch do not count as clean from now on: they are told for some epochs whether they change or not. An error appends
    /// nothing, and what was found by then is found again by the next look.
    ///
    /// # Errors
    /// When KVM refuses a call.
    pub fn collect_epoch(&mut self, frames: &mut Vec<u64>) -> Result<(), DirtyError> {
        self.look(Watch::Cold, frames)
    }

    fn look(&mut self, watch: Watch, frames: &mut Vec<u64>) -> Result<(), DirtyError> {
        let before = frames.len();
        // Without manual protection KVM watches anew whatever it tells.
        let watch = self.manual_protect.then_some(watch);
        let vm = &self.vm;
        let result = self.regions.iter_mut().try_for_each(|region| region.look(vm, watch, frames));
        if result.is_err() {
            self.mark(&frames[before..]);
            frames.truncate(before);
        }
        result
    }

    /// Marks every page, so that the next look returns all of memory (the start of a pre-copy).
    pub fn mark_all(&mut self) {
        for region in &self.regions {
            region.mapping.bitmap().mark_dirty(0, region.mapping.size());
        }
    }

    /// Marks `frames` again: the pages of a transfer that failed are merged back, never lost.
    pub fn mark(&mut self, frames: &[u64]) {
        for &frame in frames {
            let found = self
                .regions
                .iter()
                .find(|r| frame >= r.first_frame && frame - r.first_frame < r.log.pages);
            let Some(region) = found else {
                // A frame that no region holds cannot have come from this tracker.
                unreachable!("page {frame:#x} is outside guest memory");
            };
            let offset = (frame - region.first_frame) * PAGE_SIZE;
            region.mapping.bitmap().mark_dirty(offset as usize, PAGE_SIZE as usize);
        }
    }

    /// Pages of guest memory that are tracked.
    pub fn total_pages(&self) -> u64 {
        self.regions.iter().map(|r| r.log.pages).sum()
    }
}

impl Region {
    fn look(
        &mut self,
        vm: &VmFd,
        watch: Option<Watch>,
        frames: &mut Vec<u64>,
    ) -> Result<(), DirtyError> {
        self.log.get(vm, &mut self.set)?;
        // Before anything is added: KVM is to watch anew what it told, and no other page.
        let watched = watch.map_or(Ok(()), |watch| self.watch_again(vm, watch));
        let set = &mut self.set;
        self.mapping.bitmap().take(|group, bits| set.add(group, bits));
        set.drain_into(self.first_frame, frames);
        watched
    }

    /// The set has the same pages before and after.
    fn watch_again(&mut self, vm: &VmFd, watch: Watch) -> Result<(), DirtyError> {
        let Self { set, hot, unwatched, .. } = self;
        if watch == Watch::Cold {
            hot.begin_look();
            set.take_chosen(|group, bits| hot.choose(group, bits), unwatched);
        }
        let cleared = self.log.clear(vm, set);
        unwatched.drain(..).for_each(|(group, bits)| set.add(group, bits));
        cleared
    }
}
