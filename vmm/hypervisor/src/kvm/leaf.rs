//! The registers of one leaf of CPUID.

use kvm_bindings::CpuId;

/// The registers of one leaf; zero if it is absent.
pub(super) fn leaf(cpuid: &CpuId, function: u32, index: u32) -> [u32; 4] {
    cpuid
        .as_slice()
        .iter()
        .find(|e| e.function == function && e.index == index)
        .map_or([0; 4], |e| [e.eax, e.ebx, e.ecx, e.edx])
}
