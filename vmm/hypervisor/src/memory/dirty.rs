//! Collects the pages of guest memory that changed since the last look (P8).
//!
//! Two sources record changes: KVM's log has the vCPUs' writes, vm-memory's bitmap has this
//! process's writes. A look returns the union of both.

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
    first_page: u64,
    mapping: Arc<MmapRegion<PageBitmap>>,
    log: KvmLog,
    set: DirtySet,
    hot: HotPages,
    /// Buffer for the pages that stay unwatched, as groups of 64 and their bits.
    unwatched: Vec<(usize, u64)>,
}

/// The reported pages that KVM watches again after a look.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Watch {
    /// All pages.
    All,
    /// All except the pages that the guest writes all the time; the next look reports those again.
    Cold,
}

/// Collects and resets the dirty pages of one VM.
///
/// P8: this process writes guest memory only through vm-memory, and KVM logs the other writes. No
/// write is lost between two looks: KVM clears only the bits that it has reported, and
/// [`PageBitmap`] reports each mark once. An unchanged page may be reported: KVM does so if the
/// guest's first read maps a page writable, and see [`super::hot`].
pub struct DirtyTracker {
    vm: Arc<VmFd>,
    manual_protect: bool,
    regions: Vec<Region>,
    page_numbers: Vec<u64>,
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
                    first_page: region.start_addr().raw_value() / PAGE_SIZE,
                    mapping: region.get_mmap(),
                    log: KvmLog { slot, pages },
                    set: DirtySet::new(pages),
                    hot: HotPages::new(pages),
                    unwatched: Vec::new(),
                }
            })
            .collect();
        DirtyTracker { vm, manual_protect, regions, page_numbers: Vec::new() }
    }

    /// The numbers of the guest pages that changed since the last call, ascending, each once. They
    /// count as clean from now on.
    ///
    /// For a complete set, call it with the vCPUs paused and *after* their state was saved: KVM
    /// itself writes guest memory inside vCPU ioctls, for instance steal time. While the vCPUs run,
    /// the set is a lower bound, which suffices for a pre-copy.
    ///
    /// # Errors
    /// When KVM refuses a call. The next look reports the pages of this one again.
    pub fn collect(&mut self) -> Result<&[u64], DirtyError> {
        let mut page_numbers = std::mem::take(&mut self.page_numbers);
        page_numbers.clear();
        let result = self.look(Watch::All, &mut page_numbers);
        self.page_numbers = page_numbers;
        result.map(|()| self.page_numbers.as_slice())
    }

    /// Does what [`collect`](Self::collect) does, and appends to the caller's buffer. Pages that
    /// the guest writes in nearly every epoch do not count as clean afterwards: for some epochs,
    /// each look reports them whether they change or not. An error appends nothing, and the next
    /// look reports the pages again.
    ///
    /// # Errors
    /// When KVM refuses a call.
    pub fn collect_epoch(&mut self, page_numbers: &mut Vec<u64>) -> Result<(), DirtyError> {
        self.look(Watch::Cold, page_numbers)
    }

    fn look(&mut self, watch: Watch, page_numbers: &mut Vec<u64>) -> Result<(), DirtyError> {
        let before = page_numbers.len();
        // Without manual protection, KVM watches every page again that it reports.
        let watch = self.manual_protect.then_some(watch);
        let vm = &self.vm;
        let result =
            self.regions.iter_mut().try_for_each(|region| region.look(vm, watch, page_numbers));
        if result.is_err() {
            self.mark(&page_numbers[before..]);
            page_numbers.truncate(before);
        }
        result
    }

    /// Marks every page, so that the next look returns all of memory, as the start of a pre-copy
    /// needs.
    pub fn mark_all(&mut self) {
        for region in &self.regions {
            region.mapping.bitmap().mark_dirty(0, region.mapping.size());
        }
    }

    /// Marks these pages again, after a failed transfer: no change is lost.
    pub fn mark(&mut self, page_numbers: &[u64]) {
        for &page in page_numbers {
            let found = self
                .regions
                .iter()
                .find(|r| page >= r.first_page && page - r.first_page < r.log.pages);
            let Some(region) = found else {
                // A page outside all regions cannot come from this tracker.
                unreachable!("page {page:#x} is outside guest memory");
            };
            let offset = (page - region.first_page) * PAGE_SIZE;
            region.mapping.bitmap().mark_dirty(offset as usize, PAGE_SIZE as usize);
        }
    }
}

impl Region {
    fn look(
        &mut self,
        vm: &VmFd,
        watch: Option<Watch>,
        page_numbers: &mut Vec<u64>,
    ) -> Result<(), DirtyError> {
        self.log.get(vm, &mut self.set)?;
        // Do this before adding anything to the set: KVM must watch exactly the pages again that it
        // reported.
        let watched = watch.map_or(Ok(()), |watch| self.watch_again(vm, watch));
        let set = &mut self.set;
        self.mapping.bitmap().take(|group, bits| set.add(group, bits));
        set.drain_into(self.first_page, page_numbers);
        watched
    }

    /// Makes KVM watch the set's pages again, except those that stay unwatched. Leaves the set as
    /// it was.
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
