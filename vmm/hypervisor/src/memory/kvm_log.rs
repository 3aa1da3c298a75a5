//! Reads and clears KVM's log of the vCPUs' writes to one memory slot, a bitmap.

use kvm_bindings::{
    kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1, kvm_dirty_log,
    kvm_dirty_log__bindgen_ty_1,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{ioctl_iow_nr, ioctl_iowr_nr};

use super::dirty_set::DirtySet;

const KVMIO: u32 = 0xae;
ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);

/// Why the dirty pages cannot be collected.
#[derive(Debug, thiserror::Error)]
pub enum DirtyError {
    /// KVM refused to return its log.
    #[error("KVM_GET_DIRTY_LOG of memory slot {slot}: {source} (is dirty logging on?)")]
    Get {
        /// The slot.
        slot: u32,
        /// The kernel's error.
        source: std::io::Error,
    },
    /// KVM refused to clear its log.
    #[error("KVM_CLEAR_DIRTY_LOG of memory slot {slot}: {source}")]
    Clear {
        /// The slot.
        slot: u32,
        /// The kernel's error.
        source: std::io::Error,
    },
}

/// Maximum gap, in groups of 64 clean pages, within one call that clears the log. KVM copies and
/// reads each word of a call; for this many words that takes about as long as a second call.
const CLEAR_GAP: usize = 512;

/// A memory slot that KVM logs.
pub(crate) struct KvmLog {
    pub(crate) slot: u32,
    pub(crate) pages: u64,
}

impl KvmLog {
    /// Reads the log into `set`, replacing its content (KVM API, KVM_GET_DIRTY_LOG).
    pub(super) fn get(&self, vm: &VmFd, set: &mut DirtySet) -> Result<(), DirtyError> {
        set.fill(|words| self.get_words(vm, words))
    }

    fn get_words(&self, vm: &VmFd, words: &mut [u64]) -> Result<(), DirtyError> {
        assert_eq!(words.len() as u64, self.pages.div_ceil(64), "a bitmap of another slot");
        let mut request = kvm_dirty_log {
            slot: self.slot,
            padding1: 0,
            __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 {
                dirty_bitmap: words.as_mut_ptr().cast(),
            },
        };
        // SAFETY: `vm` is a VM's descriptor; KVM writes one bit per page of the slot, rounded up to
        // whole longs, and `words` has exactly that many (the slot was registered from the same
        // region).
        let ret = unsafe { ioctl_with_mut_ref(vm, KVM_GET_DIRTY_LOG(), &mut request) };
        if ret != 0 {
            let source = std::io::Error::last_os_error();
            return Err(DirtyError::Get { slot: self.slot, source });
        }
        Ok(())
    }

    /// Makes KVM watch exactly the pages of `set` again. A page outside of it that the guest has
    /// dirtied since the log was read keeps its bit. Passes only spans of words with bits, so that
    /// few dirty pages cost little wherever they are.
    pub(super) fn clear(&self, vm: &VmFd, set: &DirtySet) -> Result<(), DirtyError> {
        for span in set.spans(CLEAR_GAP) {
            self.clear_words(vm, span.start as u64 * 64, set.words(span))?;
        }
        Ok(())
    }

    /// Calls KVM_CLEAR_DIRTY_LOG (KVM API) for `words`, from a page whose number is a multiple of
    /// 64.
    pub(crate) fn clear_words(
        &self,
        vm: &VmFd,
        first_page: u64,
        words: &[u64],
    ) -> Result<(), DirtyError> {
        // num_pages must be a multiple of 64 unless the span reaches the end of the slot. As a u32,
        // it covers 16 TiB.
        let num_pages = (words.len() as u64 * 64).min(self.pages - first_page);
        let request = kvm_clear_dirty_log {
            slot: self.slot,
            num_pages: num_pages as u32,
            first_page,
            __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
                dirty_bitmap: words.as_ptr().cast_mut().cast(),
            },
        };
        // SAFETY: `vm` is a VM's descriptor; KVM only reads from the bitmap: `num_pages` bits,
        // rounded up to whole longs, which are the words of `words`.
        let ret = unsafe { ioctl_with_ref(vm, KVM_CLEAR_DIRTY_LOG(), &request) };
        if ret != 0 {
            let source = std::io::Error::last_os_error();
            return Err(DirtyError::Clear { slot: self.slot, source });
        }
        Ok(())
    }
}
