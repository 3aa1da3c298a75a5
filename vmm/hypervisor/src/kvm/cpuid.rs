//! The guest's CPUID: the host's features that KVM supports, and a topology of N cores in one
//! package.

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::Kvm;

use super::offered;

/// CPUID leaf 1, ECX: a hypervisor is present.
const HYPERVISOR: u32 = 1 << 31;
/// CPUID leaf 1, EDX: the package has several logical processors.
const HTT: u32 = 1 << 28;

/// What KVM supports on this host, before a vCPU's topology is added.
///
/// # Errors
/// When KVM_GET_SUPPORTED_CPUID fails.
pub fn supported(kvm: &Kvm) -> std::io::Result<CpuId> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(|e| std::io::Error::from_raw_os_error(e.errno()))
}

/// CPUID of vCPU `index` of `count`, from the leaves that KVM supports.
///
/// Leaves out features whose state cannot be saved, see [`offered`].
///
/// # Errors
/// When there are more leaves than a [`CpuId`] can hold.
pub fn for_vcpu(
    supported: &CpuId,
    index: u32,
    count: u32,
) -> Result<CpuId, vmm_sys_util::fam::Error> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        // The topology leaves 0xb and 0x1f describe the host: 0xb is built anew below, and 0x1f is
        // optional.
        .filter(|e| e.function != 0xb && e.function != 0x1f)
        .copied()
        .collect();
    let max_basic = entries.iter().find(|e| e.function == 0).map_or(0, |e| e.eax);
    offered::withhold(&mut entries);
    for entry in &mut entries {
        set_topology(entry, index, count);
    }
    if max_basic >= 0xb {
        entries.extend(extended_topology(index, count));
    }
    CpuId::from_entries(&entries)
}

fn set_topology(entry: &mut kvm_cpuid_entry2, index: u32, count: u32) {
    match entry.function {
        1 => {
            entry.ebx = (entry.ebx & 0x0000_ffff) | ((count & 0xff) << 16) | (index << 24);
            entry.ecx |= HYPERVISOR;
            if count > 1 {
                entry.edx |= HTT;
            } else {
                entry.edx &= !HTT;
            }
        }
        // Bits 31-26: cores per package, minus one. Bits 25-14: threads that share this cache,
        // minus one. Only the last level is shared, by the whole package.
        4 if entry.eax & 0x1f != 0 => {
            let level = (entry.eax >> 5) & 7;
            let sharing = if level >= 3 { id_space(count) - 1 } else { 0 };
            entry.eax =
                (entry.eax & 0x3fff) | (sharing << 14) | (((id_space(count) - 1) & 0x3f) << 26);
        }
        // AMD: number of cores minus one, and the width of the core's part of the APIC id.
        0x8000_0008 => {
            entry.ecx =
                (entry.ecx & 0xffff_0f00) | (id_space(count).ilog2() << 12) | ((count - 1) & 0xff);
        }
        // AMD: APIC id; core id, with one thread per core; one node.
        0x8000_001e => {
            entry.eax = index;
            entry.ebx = index;
            entry.ecx = 0;
        }
        _ => {}
    }
}

/// APIC ids are allocated in powers of two.
fn id_space(count: u32) -> u32 {
    count.next_power_of_two()
}

/// Leaf 0xb: one thread per core (sub-leaf 0), `count` cores per package (sub-leaf 1).
fn extended_topology(index: u32, count: u32) -> [kvm_cpuid_entry2; 2] {
    let leaf = |sub: u32, shift: u32, logical: u32, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index: sub,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: logical,
        ecx: sub | (kind << 8),
        edx: index,
        ..Default::default()
    };
    [leaf(0, 0, 1, 1), leaf(1, id_space(count).ilog2(), count, 2)]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::leaf::leaf;
    use super::*;

    const VMX: u32 = 1 << 5;
    const TSC_DEADLINE: u32 = 1 << 24;
    const SVM: u32 = 1 << 2;

    fn entry(function: u32, regs: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            eax: regs[0],
            ebx: regs[1],
            ecx: regs[2],
            edx: regs[3],
            ..Default::default()
        }
    }

    #[test]
    fn topology_of_two_cores() {
        let all = u32::MAX;
        let host = CpuId::from_entries(&[
            entry(0, [0x1f, 0, 0, 0]),
            entry(1, [0, all, all, 0]),
            entry(0xb, [7, 8, 9, 10]),
            entry(0x1f, [7, 8, 9, 10]),
            entry(0x8000_0001, [0, 0, all, 0]),
            entry(0x8000_001e, [9, 9, 9, 9]),
        ])
        .unwrap();
        let cpuid = for_vcpu(&host, 1, 2).unwrap();
        let one = leaf(&cpuid, 1, 0);
        assert_eq!(one[1], 0x0102_ffff);
        assert_eq!(one[2] & (VMX | TSC_DEADLINE | HYPERVISOR), HYPERVISOR);
        assert_eq!(one[3] & HTT, HTT);
        assert_eq!(leaf(&cpuid, 0xb, 0), [0, 1, 0x100, 1]);
        assert_eq!(leaf(&cpuid, 0xb, 1), [1, 2, 0x201, 1]);
        assert_eq!(leaf(&cpuid, 0x1f, 0), [0; 4]);
        assert_eq!(leaf(&cpuid, 0x8000_0001, 0)[2] & SVM, 0);
        assert_eq!(leaf(&cpuid, 0x8000_001e, 0), [1, 1, 0, 9]);
    }
}
