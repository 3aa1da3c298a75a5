//! Model-specific registers: the values that a vCPU starts with, and the list of registers to save.

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, MsrList, Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

use super::error::{VmError, ioctl_error};
use super::offered;

/// The time stamp counter.
pub(crate) const IA32_TSC: u32 = 0x10;
const IA32_MISC_ENABLE: u32 = 0x1a0;
/// Enables fast string operations: without it, Linux does not copy by `rep movsb`.
const MISC_ENABLE_FAST_STRING: u64 = 1;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
/// Enables the MTRRs, with everything write-back: Linux turns PAT off if the MTRRs are off.
const MTRR_ENABLE_WRITE_BACK: u64 = (1 << 11) | 6;

/// KVM's wall clock registers, old and new number. Restoring one makes KVM write the wall clock
/// into guest memory, at the address that the guest set at boot. That memory may have another use
/// by now; guests read the wall clock only once.
const KVM_WALL_CLOCK: [u32; 2] = [0x11, 0x4b56_4d00];
/// Hyper-V's registers. CPUID does not offer Hyper-V's leaves, so a guest does not use them; some
/// advance on their own.
const HYPER_V: std::ops::Range<u32> = 0x4000_0000..0x4000_0200;
/// The base of SMM. SMM is not offered to guests, and KVM then refuses to set its base.
const IA32_SMBASE: u32 = 0x9e;

/// Sets what firmware would set. Hosts differ in their registers: one that KVM refuses keeps its
/// reset value.
pub(crate) fn set_boot_defaults(fd: &VcpuFd) {
    for (index, data) in
        [(IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING), (IA32_MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK)]
    {
        if !set_one(fd, index, data) {
            log::debug!("this host refuses MSR {index:#x} = {data:#x}");
        }
    }
}

fn set_one(fd: &VcpuFd, index: u32, data: u64) -> bool {
    let entry = kvm_msr_entry { index, data, ..Default::default() };
    Msrs::from_entries(&[entry]).is_ok_and(|msrs| fd.set_msrs(&msrs).is_ok_and(|n| n == 1))
}

pub(super) fn get_one(fd: &VcpuFd, index: u32) -> Option<u64> {
    let entry = kvm_msr_entry { index, ..Default::default() };
    let mut msrs = Msrs::from_entries(&[entry]).ok()?;
    match fd.get_msrs(&mut msrs) {
        Ok(1) => msrs.as_slice().first().map(|e| e.data),
        _ => None,
    }
}

/// The registers that KVM lists for saving, except those that must not be restored.
fn candidates(kvm: &Kvm) -> Result<Vec<u32>, VmError> {
    let list: MsrList = kvm.get_msr_index_list().map_err(ioctl_error("KVM_GET_MSR_INDEX_LIST"))?;
    let mut list: Vec<u32> = list
        .as_slice()
        .iter()
        .copied()
        .filter(|m| !KVM_WALL_CLOCK.contains(m) && !HYPER_V.contains(m) && *m != IA32_SMBASE)
        .collect();
    list.sort_unstable();
    list.dedup();
    Ok(list)
}

/// The registers that a checkpoint saves: those that can be read from *and* written to `fd`, a vCPU
/// that has not run yet. The candidates come from KVM's list and from the vCPU's CPUID.
///
/// KVM also lists registers that a given CPUID model lacks. One of those would stop the
/// KVM_GET_MSRS of a save half-way.
pub(crate) fn saveable(kvm: &Kvm, fd: &VcpuFd) -> Result<Vec<u32>, VmError> {
    let cpuid = fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(ioctl_error("KVM_GET_CPUID2"))?;
    let mut list = candidates(kvm)?;
    list.extend(offered::implied(&cpuid, |msr| get_one(fd, msr)));
    list.sort_unstable();
    list.dedup();
    list.retain(|&index| is_saveable(fd, index));
    Ok(list)
}

/// Whether a register can be read and written; writes back its own value.
pub(super) fn is_saveable(fd: &VcpuFd, index: u32) -> bool {
    // Every KVM has the TSC. Do not write it here: it would set this vCPU out of step with the
    // others.
    index == IA32_TSC || get_one(fd, index).is_some_and(|data| set_one(fd, index, data))
}
