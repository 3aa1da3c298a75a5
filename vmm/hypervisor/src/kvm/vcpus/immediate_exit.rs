//! The flag that takes a vCPU out of KVM_RUN.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;

/// The flag in the shared `kvm_run` page that makes the next KVM_RUN return at once (KVM API,
/// immediate_exit).
pub(super) struct ImmediateExit(NonNull<AtomicU8>);

// SAFETY: the pointer leads into the kvm_run mapping of the VcpuFd that lives in the same `Vcpu`,
// which is unmapped only when that is dropped; all accesses through it are atomic, and the kernel
// reads the flag once per KVM_RUN.
unsafe impl Send for ImmediateExit {}
// SAFETY: as for Send.
unsafe impl Sync for ImmediateExit {}

impl ImmediateExit {
    pub(super) fn of(fd: &mut VcpuFd) -> Self {
        let run: *mut kvm_run = fd.get_kvm_run();
        // SAFETY: `run` points to a mapped kvm_run, so the address of its field is valid and not
        // null. AtomicU8 has the layout of u8.
        let flag = unsafe { NonNull::new_unchecked((&raw mut (*run).immediate_exit).cast()) };
        ImmediateExit(flag)
    }

    pub(super) fn set(&self, on: bool) {
        // SAFETY: see the comment at `Send`: the mapping outlives `self`.
        let flag = unsafe { self.0.as_ref() };
        flag.store(u8::from(on), Ordering::SeqCst);
    }
}
