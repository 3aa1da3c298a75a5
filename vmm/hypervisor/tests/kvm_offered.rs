//! Checks that each feature that the guest's CPUID offers is saved. The test derives the list of
//! registers from CPUID by the processors' manuals, independently of the product. Each of them must
//! survive a save and a restore.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::collections::BTreeMap;

use common::{memory, open, vm};
use kemari_hypervisor::kvm::state::SavePlan;
use kemari_hypervisor::kvm::{ClockPolicy, CompatInfo, VcpuState, Vm, VmState};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

/// Registers of CPUID.
#[derive(Clone, Copy)]
enum Reg {
    Eax,
    Ebx,
    Ecx,
    Edx,
}
use Reg::{Eax, Ebx, Ecx, Edx};

/// A bit of CPUID: leaf, sub-leaf, register and bit number.
type Bit = (u32, u32, Reg, u32);

/// Feature bits, and the registers that a guest with the feature may use (Intel SDM, volume 4; AMD
/// APM, volume 2, appendix A).
const IMPLIED: &[(&str, Bit, &[u32])] = &[
    ("TSC", (1, 0, Edx, 4), &[0x10]),
    ("SEP", (1, 0, Edx, 11), &[0x174, 0x175, 0x176]),
    ("PAT", (1, 0, Edx, 16), &[0x277]),
    ("PDCM", (1, 0, Ecx, 15), &[0x345]),
    ("TSC deadline", (1, 0, Ecx, 24), &[0x6e0]),
    ("DS", (1, 0, Edx, 21), &[0x600]),
    ("TSC_ADJUST", (7, 0, Ebx, 1), &[0x3b]),
    ("MPX", (7, 0, Ebx, 14), &[0xd90]),
    ("WAITPKG", (7, 0, Ecx, 5), &[0xe1]),
    ("PKS", (7, 0, Ecx, 31), &[0x6e1]),
    ("RDPID", (7, 0, Ecx, 22), &[0xc000_0103]),
    ("SPEC_CTRL", (7, 0, Edx, 26), &[0x48]),
    ("STIBP", (7, 0, Edx, 27), &[0x48]),
    ("SSBD", (7, 0, Edx, 31), &[0x48]),
    ("SHSTK", (7, 0, Ecx, 7), &[0x6a0, 0x6a2, 0x6a4, 0x6a5, 0x6a6, 0x6a7, 0x6a8]),
    ("IBT", (7, 0, Edx, 20), &[0x6a0, 0x6a2]),
    ("FRED", (7, 1, Eax, 17), &[0x1cc, 0x1cd, 0x1ce, 0x1cf, 0x1d0, 0x1d1, 0x1d2, 0x1d3, 0x1d4]),
    ("XSAVES", (0xd, 1, Eax, 3), &[0xda0]),
    ("XFD", (0xd, 1, Eax, 4), &[0x1c4, 0x1c5]),
    ("SYSCALL", (0x8000_0001, 0, Edx, 11), &[0xc000_0081, 0xc000_0082, 0xc000_0083, 0xc000_0084]),
    ("LM", (0x8000_0001, 0, Edx, 29), &[0xc000_0102]),
    ("RDTSCP", (0x8000_0001, 0, Edx, 27), &[0xc000_0103]),
    ("OSVW", (0x8000_0001, 0, Ecx, 9), &[0xc001_0140, 0xc001_0141]),
    (
        "PERFCTR_CORE",
        (0x8000_0001, 0, Ecx, 23),
        &[
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
        ],
    ),
    ("PerfMonV2", (0x8000_0022, 0, Eax, 0), &[0xc000_0300, 0xc000_0301]),
    ("IBRS (AMD)", (0x8000_0008, 0, Ebx, 14), &[0x48]),
    ("STIBP (AMD)", (0x8000_0008, 0, Ebx, 15), &[0x48]),
    ("SSBD (AMD)", (0x8000_0008, 0, Ebx, 24), &[0x48]),
    ("VIRT_SSBD", (0x8000_0008, 0, Ebx, 25), &[0xc001_011f]),
    ("TscRateMsr", (0x8000_000a, 0, Edx, 4), &[0xc000_0104]),
    ("KVM clock", (0x4000_0001, 0, Eax, 3), &[0x4b56_4d01]),
    ("KVM async page faults", (0x4000_0001, 0, Eax, 4), &[0x4b56_4d02]),
    ("KVM steal time", (0x4000_0001, 0, Eax, 5), &[0x4b56_4d03]),
    ("KVM PV EOI", (0x4000_0001, 0, Eax, 6), &[0x4b56_4d04]),
    ("KVM poll control", (0x4000_0001, 0, Eax, 12), &[0x4b56_4d05]),
    ("KVM async page faults by interrupt", (0x4000_0001, 0, Eax, 14), &[0x4b56_4d06]),
];

/// Features that are never offered, because their state cannot be read or written, or is not in the
/// vCPU.
const NEVER: &[(&str, Bit)] = &[
    ("VMX", (1, 0, Ecx, 5)),
    ("SMX", (1, 0, Ecx, 6)),
    ("SVM", (0x8000_0001, 0, Ecx, 2)),
    ("SGX", (7, 0, Ebx, 2)),
    ("SGX launch control", (7, 0, Ecx, 30)),
    ("processor trace", (7, 0, Ebx, 25)),
    ("shadow stacks, whose pointer is no MSR", (7, 0, Ecx, 7)),
    ("architectural last branch records", (7, 0, Edx, 19)),
    ("user interrupts", (7, 0, Edx, 5)),
    ("TME", (7, 0, Ecx, 13)),
    ("key locker", (7, 0, Ecx, 23)),
    ("RDT monitoring", (7, 0, Ebx, 12)),
    ("RDT allocation", (7, 0, Ebx, 15)),
    ("HWP", (6, 0, Eax, 7)),
    ("hardware feedback", (6, 0, Eax, 19)),
    ("APERF and MPERF", (6, 0, Ecx, 0)),
    ("IBS", (0x8000_0001, 0, Ecx, 10)),
    ("LWP", (0x8000_0001, 0, Ecx, 15)),
    ("SME", (0x8000_001f, 0, Eax, 0)),
    ("SEV", (0x8000_001f, 0, Eax, 1)),
];

const MTRR: Bit = (1, 0, Edx, 12);
const MCA: Bit = (1, 0, Edx, 14);
const MTRR_CAP: u32 = 0xfe;
const MCG_CAP: u32 = 0x179;

fn word(cpuid: &CpuId, (leaf, index, reg): (u32, u32, Reg)) -> u32 {
    let found = cpuid.as_slice().iter().find(|e| e.function == leaf && e.index == index);
    found.map_or(0, |e| match reg {
        Eax => e.eax,
        Ebx => e.ebx,
        Ecx => e.ecx,
        Edx => e.edx,
    })
}

fn offers(cpuid: &CpuId, (leaf, index, reg, bit): Bit) -> bool {
    word(cpuid, (leaf, index, reg)) & 1 << bit != 0
}

fn get(fd: &VcpuFd, index: u32) -> Option<u64> {
    let mut msrs = Msrs::from_entries(&[kvm_msr_entry { index, ..Default::default() }]).unwrap();
    matches!(fd.get_msrs(&mut msrs), Ok(1)).then(|| msrs.as_slice()[0].data)
}

fn set(fd: &VcpuFd, index: u32, data: u64) -> bool {
    let entry = kvm_msr_entry { index, data, ..Default::default() };
    matches!(fd.set_msrs(&Msrs::from_entries(&[entry]).unwrap()), Ok(1))
}

/// All registers that this vCPU's CPUID implies, each with the feature that implies it.
fn implied(fd: &VcpuFd) -> BTreeMap<u32, String> {
    let cpuid = fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap();
    let mut found = BTreeMap::new();
    for (name, bit, msrs) in IMPLIED {
        if offers(&cpuid, *bit) {
            found.extend(msrs.iter().map(|msr| (*msr, (*name).to_owned())));
        }
    }
    if offers(&cpuid, MTRR) {
        let capabilities = get(fd, MTRR_CAP).unwrap();
        let variable = 0x200..0x200 + 2 * (capabilities as u32 & 0xff);
        let fixed = [0x250, 0x258, 0x259].into_iter().chain(0x268..0x270);
        let fixed = fixed.filter(|_| capabilities & 1 << 8 != 0);
        let all = variable.chain(fixed).chain([0x2ff]);
        found.extend(all.map(|msr| (msr, "MTRR".to_owned())));
    }
    if offers(&cpuid, MCA) {
        let capabilities = get(fd, MCG_CAP).unwrap();
        let banks = 0x400..0x400 + 4 * (capabilities as u32 & 0xff);
        let control = [0x17b].into_iter().filter(|_| capabilities & 1 << 8 != 0);
        let all = banks.chain(control).chain([0x17a]);
        found.extend(all.map(|msr| (msr, "MCA".to_owned())));
    }
    // Architectural performance monitoring (leaf 0xa).
    let counters = word(&cpuid, (0xa, 0, Eax));
    if counters & 0xff > 0 {
        let general = (counters >> 8) & 0xff;
        let fixed = word(&cpuid, (0xa, 0, Edx)) & 0x1f;
        let all = (0x186..0x186 + general).chain(0xc1..0xc1 + general).chain(0x309..0x309 + fixed);
        let global = [0x38d, 0x38f].into_iter().filter(|_| counters & 0xff > 1);
        found.extend(all.chain(global).map(|msr| (msr, "performance counters".to_owned())));
    }
    found
}

struct Side {
    vm: Vm,
    fd: VcpuFd,
    plan: SavePlan,
}

fn side(kvm: &Kvm) -> Side {
    let vm = vm(kvm, memory(4 << 20), &[], 1);
    let fd = vm.create_vcpus().unwrap().remove(0);
    let plan = SavePlan::new(kvm, &vm, &fd).unwrap();
    Side { vm, fd, plan }
}

/// Changes a register's value if it accepts another one; returns its value afterwards.
fn change(fd: &VcpuFd, index: u32) -> u64 {
    let before = get(fd, index).unwrap();
    let candidates = [
        before ^ 1,
        !before,
        0,
        u64::MAX,
        0x8000_0006,
        0x7f_8000_0800,
        0x0606_0606_0606_0606,
        0x0007_0406_0007_0405,
        0xc06,
        0x1000,
        0x1001,
        7,
    ];
    for value in candidates.into_iter().filter(|value| *value != before) {
        if set(fd, index, value) && get(fd, index).is_some_and(|now| now != before) {
            break;
        }
    }
    get(fd, index).unwrap()
}

/// P4: all registers that the guest can see and change are in the state that the standby receives.
#[test]
fn p4_every_register_that_cpuid_offers_is_saved() {
    let kvm = open();
    let (from, to) = (side(&kvm), side(&kvm));
    let implied = implied(&from.fd);
    let saved = from.plan.msr_indices();
    let missing: Vec<_> = implied
        .iter()
        .filter(|(msr, _)| !saved.contains(msr))
        .map(|(m, n)| format!("{m:#x} ({n})"))
        .collect();
    assert!(missing.is_empty(), "{} offered and not saved: {}", missing.len(), missing.join(", "));

    // The TSC advances on its own. In KVM's own registers, a value is an address that KVM writes
    // to.
    let own = |msr: &u32| *msr == 0x10 || *msr >> 8 == 0x004b_564d;
    let changed: BTreeMap<u32, u64> =
        implied.keys().filter(|msr| !own(msr)).map(|msr| (*msr, change(&from.fd, *msr))).collect();
    let differ = changed.iter().filter(|(msr, value)| get(&to.fd, **msr) != Some(**value)).count();
    println!("{} registers implied, {differ} with a value of their own", changed.len());
    assert!(differ * 2 > changed.len(), "the test changes what it looks at");
    let state = VcpuState::save(&from.fd, &from.plan).unwrap();
    let bytes = postcard::to_allocvec(&state).unwrap();
    let state: VcpuState = postcard::from_bytes(&bytes).unwrap();
    VmState::save(&from.vm).unwrap().restore(&to.vm, ClockPolicy::Continue).unwrap();
    state.restore(&to.fd, &to.plan).unwrap();
    let lost: Vec<_> = changed
        .iter()
        .filter(|(msr, value)| get(&to.fd, **msr) != Some(**value))
        .map(|(msr, value)| {
            format!("{msr:#x} ({}): {value:#x} became {:x?}", implied[msr], get(&to.fd, *msr))
        })
        .collect();
    assert!(lost.is_empty(), "{}", lost.join("\n"));
}

#[test]
fn what_cannot_be_saved_is_not_offered() {
    let kvm = open();
    let side = side(&kvm);
    let cpuid = side.fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap();
    let offered: Vec<_> =
        NEVER.iter().filter(|(_, bit)| offers(&cpuid, *bit)).map(|(name, _)| name).collect();
    assert!(offered.is_empty(), "{offered:?}");
    // The saved area holds the vector state of all components.
    let needed = word(&cpuid, (0xd, 0, Ecx)) as usize;
    assert!(needed <= side.plan.xsave_size(), "{needed} of {}", side.plan.xsave_size());
}

/// The handshake compares what the guest sees, including the counters of leaf 0xa.
#[test]
fn every_leaf_that_the_guest_sees_is_compared() {
    let kvm = open();
    let side = side(&kvm);
    let info = CompatInfo::new(&kvm, &side.vm, &side.fd, &side.plan);
    let cpuid = side.fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap();
    // APIC ids, topology and sizes, which follow --cpus or the vCPU's registers; descriptions of
    // caches, names, frequencies.
    let left_out = |leaf: u32, index: u32, reg: u8| {
        matches!(
            (leaf, index, reg),
            (1, 0, 1)
                | (2 | 4 | 0xb | 0x15 | 0x16 | 0x18 | 0x1f, _, _)
                | (0xd, 0 | 1, 1)
                | (0x8000_0008, 0, 2)
                | (
                    0x8000_0002
                        ..=0x8000_0006 | 0x8000_0019 | 0x8000_001a | 0x8000_001d | 0x8000_001e,
                    _,
                    _
                )
                | (0x4000_0010, _, _)
        )
    };
    let mut missing = Vec::new();
    for entry in cpuid.as_slice() {
        for (reg, value) in (0_u8..).zip([entry.eax, entry.ebx, entry.ecx, entry.edx]) {
            let compared = info.features.iter().any(|word| {
                (word.function, word.index, word.register, word.value)
                    == (entry.function, entry.index, reg, value)
            });
            if !compared && value != 0 && !left_out(entry.function, entry.index, reg) {
                missing.push(format!("{:#x}.{} {reg} = {value:#x}", entry.function, entry.index));
            }
        }
    }
    assert!(missing.is_empty(), "seen by the guest and not compared: {}", missing.join(", "));
    // A host with other counters than the guest's must be refused.
    let mut other = info.clone();
    let counters =
        other.features.iter_mut().find(|word| (word.function, word.register) == (0xa, 0));
    counters.expect("leaf 0xa is compared").value ^= 0x0730_0402;
    let refused = info.check(&other).unwrap_err().to_string();
    assert!(refused.contains("leaf 0xa"), "{refused}");
}
