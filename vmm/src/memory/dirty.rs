//! Which pages of guest memory changed since the last look: KVM's log of the vCPUs' writes, OR vm-memory's bitmap of this
//! process's writes (P8).

use std::sync::Arc;

use kvm_bindings::{
    kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1, kvm_dirty_log,
    kvm_dirty_log__bindgen_ty_1,
};
use kvm_ioctls::VmFd;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, MmapRegion};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{ioctl_iow_nr, ioctl_iowr_nr};

use super::GuestMemory;
use crate::layout::PAGE_SIZE;

const KVMIO: u32 = 0xae;
ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);

/// Why the dirty pages could not be told.
#[derive(Debug, thiserror::Error)]
pub enum DirtyError {
    /// KVM refused to give its log.
    #[error("KVM_GET_DIRTY_LOG of memory slot {slot}: {source} (is dirty logging on?)")]
    Get {
        /// The slot.
        slot: u32,
        /// What the kernel says.
        source: std::io::Error,
    },
    /// KVM refused to clear its log.
    #[error("KVM_CLEAR_DIRTY_LOG of memory slot {slot}: {source}")]
    Clear {
        /// The slot.
        slot: u32,
        /// What the kernel says.
        source: std::io::Error,
    },
}

struct Region {
    slot: u32,
    first_frame: u64,
    pages: u64,
    mapping: Arc<MmapRegion<AtomicBitmap>>,
    /// What KVM says, one bit per page. KVM writes whole longs: the length is rounded up to 64 pages.
    log: Vec<u64>,
    /// Pages that the caller marked by hand; empty when there are none.
    marked: Vec<u64>,
}

/// Collects and resets the dirty pages of one VM.
///
/// P8: whoever writes guest memory in this process does it through vm-memory; KVM logs the rest. Nothing is lost between
/// two looks: KVM clears exactly the bits that it told, and each word of vm-memory's bitmap is swapped atomically. A page may
/// be told without having changed (KVM does so when the guest first reads a page and it is mapped writable at once).
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
                    slot,
                    first_frame: region.start_addr().raw_value() / PAGE_SIZE,
                    pages,
                    mapping: region.get_mmap(),
                    log: vec![0; pages.div_ceil(64) as usize],
                    marked: Vec::new(),
                }
            })
            .collect();
        DirtyTracker { vm, manual_protect, regions, frames: Vec::new() }
    }

    /// The guest page numbers that changed since the last call, ascending, each once; from now on they count as clean.
    ///
    /// Call it with the vCPUs paused and *after* their state was saved when the set must be complete: KVM itself writes
    /// guest memory (steal time, for one) inside vCPU ioctls. While the vCPUs run it is a lower bound, good for pre-copy.
    pub fn collect(&mut self) -> Result<&[u64], DirtyError> {
        let mut frames = std::mem::take(&mut self.frames);
        frames.clear();
        let result = self.collect_into(&mut frames);
        self.frames = frames;
        result.map(|()| self.frames.as_slice())
    }

    /// [`collect`](Self::collect), appending to a buffer of the caller's.
    pub fn collect_into(&mut self, frames: &mut Vec<u64>) -> Result<(), DirtyError> {
        for region in &mut self.regions {
            region.fetch_log(&self.vm, self.manual_protect)?;
            region.merge_own_writes();
            region.list(frames);
        }
        Ok(())
    }

    /// Marks every page, so that the next look returns all of memory (the start of a pre-copy).
    pub fn mark_all(&mut self) {
        for region in &mut self.regions {
            region.mark_all();
        }
    }

    /// Marks `frames` again: the pages of a transfer that failed are merged back, never lost.
    pub fn mark(&mut self, frames: &[u64]) {
        for &frame in frames {
            let found = self
                .regions
                .iter_mut()
                .find(|r| frame >= r.first_frame && frame - r.first_frame < r.pages);
            let Some(region) = found else {
                // A frame that no region holds cannot have come from this tracker.
                unreachable!("page {frame:#x} is outside guest memory");
            };
            region.mark(frame - region.first_frame);
        }
    }

    /// Pages of guest memory that are tracked.
    pub fn total_pages(&self) -> u64 {
        self.regions.iter().map(|r| r.pages).sum()
    }
}

impl Region {
    /// Reads KVM's log into `self.log` and makes KVM watch those pages again.
    fn fetch_log(&mut self, vm: &VmFd, manual_protect: bool) -> Result<(), DirtyError> {
        let mut request = kvm_dirty_log {
            slot: self.slot,
            padding1: 0,
            __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 {
                dirty_bitmap: self.log.as_mut_ptr().cast(),
            },
        };
        // SAFETY: `vm` is a VM's descriptor; KVM writes one bit per page of the slot, rounded up to whole longs, and
        // `log` has exactly that many words (the slot was registered from the same region).
        let ret = unsafe { ioctl_with_mut_ref(vm, KVM_GET_DIRTY_LOG(), &mut request) };
        if ret != 0 {
            return Err(DirtyError::Get {
                slot: self.slot,
                source: std::io::Error::last_os_error(),
            });
        }
        if manual_protect {
            self.clear_log(vm)?;
        }
        Ok(())
    }

    /// Clears in KVM exactly the bits that were told (KVM API, KVM_CLEAR_DIRTY_LOG): a page that the guest dirtied since
    /// the log was read keeps its bit. Only the span of words that holds bits is passed, so few dirty pages cost little.
    fn clear_log(&mut self, vm: &VmFd) -> Result<(), DirtyError> {
        let Some(first) = self.log.iter().position(|&w| w != 0) else {
            return Ok(());
        };
        let end = self.log.iter().rposition(|&w| w != 0).unwrap_or(first) + 1;
        // num_pages must be a multiple of 64 unless the span reaches the end of the slot. It is a u32: 16 TiB.
        let num_pages = (end as u64 * 64).min(self.pages) - first as u64 * 64;
        let request = kvm_clear_dirty_log {
            slot: self.slot,
            num_pages: num_pages as u32,
            first_page: first as u64 * 64,
            __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
                dirty_bitmap: self.log[first..end].as_mut_ptr().cast(),
            },
        };
        // SAFETY: `vm` is a VM's descriptor; KVM reads `num_pages` bits from the bitmap, rounded up to whole longs, which
        // are the words first..end of `log`.
        let ret = unsafe { ioctl_with_ref(vm, KVM_CLEAR_DIRTY_LOG(), &request) };
        if ret != 0 {
            return Err(DirtyError::Clear {
                slot: self.slot,
                source: std::io::Error::last_os_error(),
            });
        }
        Ok(())
    }

    /// ORs in what this process wrote and what the caller marked, and clears both.
    fn merge_own_writes(&mut self) {
        let own = self.mapping.bitmap().get_and_reset();
        for (word, own) in self.log.iter_mut().zip(own) {
            *word |= own;
        }
        for (word, marked) in self.log.iter_mut().zip(self.marked.drain(..)) {
            *word |= marked;
        }
    }

    fn list(&self, frames: &mut Vec<u64>) {
        for (i, &word) in self.log.iter().enumerate() {
            let mut rest = word;
            while rest != 0 {
                let page = i as u64 * 64 + u64::from(rest.trailing_zeros());
                frames.push(self.first_frame + page);
                rest &= rest - 1;
            }
        }
    }

    fn mark_all(&mut self) {
        self.marked.clear();
        self.marked.resize(self.log.len(), u64::MAX);
        let tail = self.pages % 64;
        if let Some(last) = self.marked.last_mut()
            && tail != 0
        {
            *last = (1 << tail) - 1;
        }
    }

    fn mark(&mut self, page: u64) {
        self.marked.resize(self.log.len(), 0);
        self.marked[(page / 64) as usize] |= 1 << (page % 64);
    }
}
