//! The features that CPUID offers the guest, and their registers: a feature is offered only if its
//! registers can be saved (P4).
//!
//! KVM's list of registers to save lacks some that a guest has: the MTRRs, the machine check banks,
//! AMD's OSVW. So the list is also derived from CPUID. A feature is removed from CPUID if its state
//! is in neither list or is not part of a vCPU, or if this host's KVM does not let us read and
//! write its registers.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// A register of a CPUID leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reg {
    Eax,
    Ebx,
    Ecx,
    Edx,
}
use Reg::{Eax, Ebx, Ecx, Edx};

/// A feature bit of CPUID.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bit {
    leaf: u32,
    index: u32,
    reg: Reg,
    bit: u32,
}

const fn bit(leaf: u32, index: u32, reg: Reg, bit: u32) -> Bit {
    Bit { leaf, index, reg, bit }
}

impl Bit {
    fn of(self, entry: &mut kvm_cpuid_entry2) -> Option<&mut u32> {
        (entry.function == self.leaf && entry.index == self.index).then_some(match self.reg {
            Eax => &mut entry.eax,
            Ebx => &mut entry.ebx,
            Ecx => &mut entry.ecx,
            Edx => &mut entry.edx,
        })
    }

    fn clear(self, entries: &mut [kvm_cpuid_entry2]) {
        entries
            .iter_mut()
            .filter_map(|entry| self.of(entry))
            .for_each(|word| *word &= !(1 << self.bit));
    }

    fn is_set(self, cpuid: &CpuId) -> bool {
        let [eax, ebx, ecx, edx] = super::leaf::leaf(cpuid, self.leaf, self.index);
        let word = match self.reg {
            Eax => eax,
            Ebx => ebx,
            Ecx => ecx,
            Edx => edx,
        };
        word & 1 << self.bit != 0
    }
}

/// Features that are never offered, each with its reason.
const NEVER: &[Bit] = &[
    // Nested virtualization and measured launch: the state of the guest's own guests is not saved.
    bit(1, 0, Ecx, 5),
    bit(1, 0, Ecx, 6),
    bit(0x8000_0001, 0, Ecx, 2),
    bit(0x8000_0001, 0, Ecx, 12),
    // The TSC deadline timer: the deadline counts in the host's TSC, and would not survive a
    // takeover by a host whose TSC cannot be scaled. Guests use the one-shot APIC timer instead,
    // which counts nanoseconds.
    bit(1, 0, Ecx, 24),
    // The debug store: the processor may write records to guest memory at any time.
    bit(1, 0, Edx, 21),
    bit(1, 0, Ecx, 2),
    bit(1, 0, Ecx, 4),
    // SGX and its launch control: the state of an enclave cannot be read.
    bit(7, 0, Ebx, 2),
    bit(7, 0, Ecx, 30),
    // Processor trace; monitoring and allocation of caches.
    bit(7, 0, Ebx, 25),
    bit(7, 0, Ebx, 12),
    bit(7, 0, Ebx, 15),
    // Shadow stacks: the shadow stack pointer is not an MSR.
    bit(7, 0, Ecx, 7),
    // Keys and encryption state that cannot be read from the processor.
    bit(7, 0, Ecx, 13),
    bit(7, 0, Ecx, 23),
    bit(7, 0, Edx, 18),
    // Process address spaces of devices; user interrupts; architectural last branch records.
    bit(7, 0, Ecx, 29),
    bit(7, 0, Edx, 5),
    bit(7, 0, Edx, 19),
    // AMD: instruction-based sampling, lightweight profiling, watchdog, counters outside of the
    // core.
    bit(0x8000_0001, 0, Ecx, 10),
    bit(0x8000_0001, 0, Ecx, 13),
    bit(0x8000_0001, 0, Ecx, 15),
    bit(0x8000_0001, 0, Ecx, 24),
    bit(0x8000_0001, 0, Ecx, 28),
];

/// Leaves of features that are never offered: SGX, trace, cache monitoring, key locker, last branch
/// records; SVM, IBS, profiling, memory encryption.
const EMPTY: &[u32] = &[
    0xf,
    0x10,
    0x12,
    0x14,
    0x19,
    0x1b,
    0x1c,
    0x8000_000a,
    0x8000_001b,
    0x8000_001c,
    0x8000_001f,
    0x8000_0020,
];

/// Leaf 6, EAX: the APIC timer keeps running in deep sleep. The rest of the leaf is power
/// management, which the host does.
const ARAT: u32 = 1 << 2;

/// A feature and its registers (Intel SDM, volume 4; AMD APM, volume 2, appendix A).
struct Feature {
    name: &'static str,
    bit: Bit,
    msrs: Msrs,
}

enum Msrs {
    These(&'static [u32]),
    /// The number of registers that MTRR_CAP states.
    Mtrr,
    /// The number of banks that MCG_CAP states.
    MachineCheck,
}

const fn feature(name: &'static str, bit: Bit, msrs: &'static [u32]) -> Feature {
    Feature { name, bit, msrs: Msrs::These(msrs) }
}

const SPEC_CTRL: &[u32] = &[0x48];
const TSC_AUX: &[u32] = &[0xc000_0103];
const PERFCTR_CORE: &[u32] = &[
    0xc001_0200,
    0xc001_0201,
    0xc001_0202,
    0xc001_0203,
    0xc001_0204,
    0xc001_0205,
    0xc001_0206,
    0xc001_0207,
    0xc001_0208,
    0xc001_0209,
    0xc001_020a,
    0xc001_020b,
];

const FEATURES: &[Feature] = &[
    Feature { name: "MTRR", bit: bit(1, 0, Edx, 12), msrs: Msrs::Mtrr },
    Feature { name: "MCA", bit: bit(1, 0, Edx, 14), msrs: Msrs::MachineCheck },
    Feature { name: "MCE", bit: bit(1, 0, Edx, 7), msrs: Msrs::MachineCheck },
    feature("SEP", bit(1, 0, Edx, 11), &[0x174, 0x175, 0x176]),
    feature("PAT", bit(1, 0, Edx, 16), &[0x277]),
    feature("PDCM", bit(1, 0, Ecx, 15), &[0x345]),
    feature("TSC_ADJUST", bit(7, 0, Ebx, 1), &[0x3b]),
    feature("MPX", bit(7, 0, Ebx, 14), &[0xd90]),
    feature("WAITPKG", bit(7, 0, Ecx, 5), &[0xe1]),
    feature("RDPID", bit(7, 0, Ecx, 22), TSC_AUX),
    feature("PKS", bit(7, 0, Ecx, 31), &[0x6e1]),
    feature("IBT", bit(7, 0, Edx, 20), &[0x6a0, 0x6a2]),
    feature("SPEC_CTRL", bit(7, 0, Edx, 26), SPEC_CTRL),
    feature("STIBP", bit(7, 0, Edx, 27), SPEC_CTRL),
    feature("ARCH_CAPABILITIES", bit(7, 0, Edx, 29), &[0x10a]),
    feature("SSBD", bit(7, 0, Edx, 31), SPEC_CTRL),
    feature(
        "FRED",
        bit(7, 1, Eax, 17),
        &[0x1cc, 0x1cd, 0x1ce, 0x1cf, 0x1d0, 0x1d1, 0x1d2, 0x1d3, 0x1d4],
    ),
    feature("XSAVES", bit(0xd, 1, Eax, 3), &[0xda0]),
    feature("XFD", bit(0xd, 1, Eax, 4), &[0x1c4, 0x1c5]),
    feature(
        "SYSCALL",
        bit(0x8000_0001, 0, Edx, 11),
        &[0xc000_0081, 0xc000_0082, 0xc000_0083, 0xc000_0084],
    ),
    feature("RDTSCP", bit(0x8000_0001, 0, Edx, 27), TSC_AUX),
    feature("LM", bit(0x8000_0001, 0, Edx, 29), &[0xc000_0102]),
    feature("OSVW", bit(0x8000_0001, 0, Ecx, 9), &[0xc001_0140, 0xc001_0141]),
    feature("PERFCTR_CORE", bit(0x8000_0001, 0, Ecx, 23), PERFCTR_CORE),
    feature("IBRS", bit(0x8000_0008, 0, Ebx, 14), SPEC_CTRL),
    feature("STIBP", bit(0x8000_0008, 0, Ebx, 15), SPEC_CTRL),
    feature("SSBD", bit(0x8000_0008, 0, Ebx, 24), SPEC_CTRL),
    feature("VIRT_SSBD", bit(0x8000_0008, 0, Ebx, 25), &[0xc001_011f]),
    feature("PerfMonV2", bit(0x8000_0022, 0, Eax, 0), &[0xc000_0300, 0xc000_0301]),
    feature("kvmclock", bit(0x4000_0001, 0, Eax, 3), &[0x4b56_4d01]),
    feature("async page faults", bit(0x4000_0001, 0, Eax, 4), &[0x4b56_4d02]),
    feature("steal time", bit(0x4000_0001, 0, Eax, 5), &[0x4b56_4d03]),
    feature("PV EOI", bit(0x4000_0001, 0, Eax, 6), &[0x4b56_4d04]),
    feature("poll control", bit(0x4000_0001, 0, Eax, 12), &[0x4b56_4d05]),
    feature("async page fault interrupt", bit(0x4000_0001, 0, Eax, 14), &[0x4b56_4d06]),
    feature("migration control", bit(0x4000_0001, 0, Eax, 17), &[0x4b56_4d08]),
];

/// The MTRRs' capabilities: number of variable ones in bits 7-0, presence of fixed ones in bit 8.
const MTRR_CAP: u32 = 0xfe;
/// The machine check's capabilities: number of banks in bits 7-0, MCG_CTL in bit 8, CMCI in bit 10,
/// MCG_EXT_CTL in bit 27.
const MCG_CAP: u32 = 0x179;
/// Read-only registers that describe others: both hosts must have the same values.
pub(super) const CONSTANTS: [u32; 2] = [MTRR_CAP, MCG_CAP];

impl Feature {
    fn msrs(&self, read: &impl Fn(u32) -> Option<u64>) -> Vec<u32> {
        match self.msrs {
            Msrs::These(list) => list.to_vec(),
            Msrs::Mtrr => mtrrs(read(MTRR_CAP).unwrap_or(0)),
            Msrs::MachineCheck => banks(read(MCG_CAP).unwrap_or(0)),
        }
    }
}

fn mtrrs(capabilities: u64) -> Vec<u32> {
    let mut list: Vec<u32> = (0x200..0x200 + 2 * (capabilities as u32 & 0xff)).collect();
    if capabilities & 1 << 8 != 0 {
        list.extend([0x250, 0x258, 0x259]);
        list.extend(0x268..0x270);
    }
    list.push(0x2ff);
    list
}

fn banks(capabilities: u64) -> Vec<u32> {
    let count = capabilities as u32 & 0xff;
    // MCG_STATUS, then control, status, address and miscellaneous information of each bank.
    let mut list = vec![0x17a];
    list.extend(0x400..0x400 + 4 * count);
    if capabilities & 1 << 8 != 0 {
        list.push(0x17b);
    }
    if capabilities & 1 << 10 != 0 {
        list.extend(0x280..0x280 + count);
    }
    if capabilities & 1 << 27 != 0 {
        list.push(0x4d0);
    }
    list
}

/// The registers of Intel's architectural performance monitoring (leaf 0xa).
fn counters(cpuid: &CpuId) -> Vec<u32> {
    let [eax, _, _, edx] = super::leaf::leaf(cpuid, 0xa, 0);
    let (version, general, fixed) = (eax & 0xff, (eax >> 8) & 0xff, edx & 0x1f);
    if version == 0 {
        return Vec::new();
    }
    let mut list: Vec<u32> = (0x186..0x186 + general).chain(0xc1..0xc1 + general).collect();
    if version > 1 {
        list.extend(0x309..0x309 + fixed);
        list.extend([0x38d, 0x38f]);
    }
    list
}

/// The register that an Intel guest has without a feature bit: IA32_DEBUGCTL. On AMD it holds no
/// state, since branch records are not offered to guests, and KVM logs each write to it in the
/// kernel's log.
fn without_a_bit(cpuid: &CpuId) -> &'static [u32] {
    // The first letters of GenuineIntel, in EBX.
    let intel = super::leaf::leaf(cpuid, 0, 0)[1] == u32::from_le_bytes(*b"Genu");
    if intel { &[0x1d9] } else { &[] }
}

/// Every register that this CPUID implies and whose capability registers `read` finds.
pub(super) fn implied(cpuid: &CpuId, read: impl Fn(u32) -> Option<u64>) -> Vec<u32> {
    let features = FEATURES.iter().filter(|feature| feature.bit.is_set(cpuid));
    let mut list: Vec<u32> = features.flat_map(|feature| feature.msrs(&read)).collect();
    list.extend(counters(cpuid));
    list.extend(without_a_bit(cpuid));
    list
}

/// Removes the features that are never offered from CPUID.
pub(super) fn withhold(entries: &mut [kvm_cpuid_entry2]) {
    NEVER.iter().for_each(|bit| bit.clear(entries));
    for entry in entries {
        if EMPTY.contains(&entry.function) {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        }
        if entry.function == 6 {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (entry.eax & ARAT, 0, 0, 0);
        }
    }
}

/// Removes each feature that has a register which is not `saveable` here; returns the features'
/// names.
pub(super) fn withhold_unsaveable(
    entries: &mut [kvm_cpuid_entry2],
    cpuid: &CpuId,
    read: impl Fn(u32) -> Option<u64>,
    saveable: impl Fn(u32) -> bool,
) -> Vec<&'static str> {
    let mut withheld = Vec::new();
    for feature in FEATURES.iter().filter(|feature| feature.bit.is_set(cpuid)) {
        if !feature.msrs(&read).into_iter().all(&saveable) {
            feature.bit.clear(entries);
            withheld.push(feature.name);
        }
    }
    if !counters(cpuid).into_iter().all(&saveable) {
        let leaves = entries.iter_mut().filter(|entry| entry.function == 0xa);
        leaves.for_each(|entry| (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0));
        withheld.push("performance counters");
    }
    withheld
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, regs: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = regs;
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    #[test]
    fn registers_follow_cpuid_and_the_capabilities() {
        let offers = |regs, mcg, mtrr| {
            let cpuid = CpuId::from_entries(&[entry(1, 0, regs)]).unwrap();
            implied(&cpuid, |msr| Some(if msr == MCG_CAP { mcg } else { mtrr }))
        };
        assert!(offers([0; 4], 0, 0).is_empty());
        assert_eq!(offers([0, 0, 0, 1 << 12], 0, 0x508).len(), 16 + 11 + 1);
        assert_eq!(offers([0, 0, 0, 1 << 12], 0, 0x2)[..5], [0x200, 0x201, 0x202, 0x203, 0x2ff]);
        assert_eq!(
            offers([0, 0, 0, 1 << 14], 2 | 1 << 8, 0)[..10],
            [0x17a, 0x400, 0x401, 0x402, 0x403, 0x404, 0x405, 0x406, 0x407, 0x17b]
        );
        assert_eq!(offers([0, 0, 0, 1 << 14], 1 | 1 << 10, 0)[5], 0x280);
        let intel = [0x1f, u32::from_le_bytes(*b"Genu"), 0, 0];
        let intel = CpuId::from_entries(&[entry(0, 0, intel)]).unwrap();
        assert_eq!(implied(&intel, |_| None), [0x1d9]);
        let counters = CpuId::from_entries(&[entry(0xa, 0, [0x0203, 0, 0, 1])]).unwrap();
        assert_eq!(
            implied(&counters, |_| None)[..7],
            [0x186, 0x187, 0xc1, 0xc2, 0x309, 0x38d, 0x38f]
        );
    }

    #[test]
    fn what_has_no_state_to_save_is_withheld() {
        let all = [u32::MAX; 4];
        let mut entries: Vec<_> =
            [1, 6, 7, 0x12, 0x14, 0x8000_0001, 0x8000_001f].map(|leaf| entry(leaf, 0, all)).into();
        withhold(&mut entries);
        let cpuid = CpuId::from_entries(&entries).unwrap();
        assert!(NEVER.iter().all(|bit| !bit.is_set(&cpuid)));
        assert_eq!(super::super::leaf::leaf(&cpuid, 6, 0), [ARAT, 0, 0, 0]);
        assert_eq!(super::super::leaf::leaf(&cpuid, 0x14, 0), [0; 4]);
        // All other bits are unchanged.
        assert!(bit(1, 0, Edx, 12).is_set(&cpuid) && bit(7, 0, Edx, 26).is_set(&cpuid));
    }

    #[test]
    fn a_feature_whose_registers_cannot_be_had_is_withheld() {
        let mut entries =
            vec![entry(7, 0, [0, 1 << 1, 1 << 5, 0]), entry(0xa, 0, [0x0101, 0, 0, 0])];
        let cpuid = CpuId::from_entries(&entries).unwrap();
        let withheld = withhold_unsaveable(&mut entries, &cpuid, |_| None, |msr| msr == 0x3b);
        assert_eq!(withheld, ["WAITPKG", "performance counters"]);
        assert_eq!((entries[0].ebx, entries[0].ecx, entries[1].eax), (1 << 1, 0, 0));
    }
}
