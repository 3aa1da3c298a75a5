//! What two hosts must have in common so that each can continue the other's guest. The handshake
//! compares it.

use std::collections::BTreeMap;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::leaf::leaf;
use super::state::SavePlan;
use super::vm::Vm;
use super::{msr, offered};

/// Feature words of CPUID that are compared even if they are zero: leaf, sub-leaf, and for each of
/// EAX, EBX, ECX and EDX whether it is compared.
const FEATURE_WORDS: &[(u32, u32, [bool; 4])] = &[
    (0x1, 0, [true, false, true, true]),
    (0x6, 0, [true, false, false, false]),
    (0x7, 0, [true, true, true, true]),
    (0x7, 1, [true, true, true, true]),
    (0x7, 2, [false, false, false, true]),
    (0xa, 0, [true, true, true, true]),
    (0xd, 0, [true, false, true, true]),
    (0xd, 1, [true, false, true, true]),
    (0x24, 0, [false, true, false, false]),
    (0x4000_0001, 0, [true, false, false, false]),
    (0x8000_0001, 0, [false, false, true, true]),
    (0x8000_0007, 0, [false, false, false, true]),
    (0x8000_0008, 0, [true, true, false, false]),
    (0x8000_0021, 0, [true, false, false, false]),
    (0x8000_0022, 0, [true, true, false, false]),
];

/// Whether a word of CPUID is not compared. All others are, because a guest may rely on what it
/// sees. The excluded words name the vCPU or its place, follow `--cpus` or the vCPU's own control
/// registers, or only describe (caches, names, frequencies): hosts of one processor model may
/// differ in these descriptions.
fn is_left_out(function: u32, index: u32, register: usize) -> bool {
    match (function, index, register) {
        // APIC id and number of vCPUs; topology.
        (0x1, _, 1) | (0xb | 0x1f | 0x8000_001e, _, _) | (0x8000_0008, _, 2) => true,
        // Sizes of the components that the vCPU has enabled.
        (0xd, 0 | 1, 1) => true,
        // Caches and TLBs, frequencies, names, hints.
        (0x2 | 0x4 | 0x15 | 0x16 | 0x18, _, _) => true,
        (0x8000_0002..=0x8000_0006 | 0x8000_0019 | 0x8000_001a | 0x8000_001d, _, _) => true,
        // KVM's own leaf of frequencies.
        (0x4000_0010, _, _) => true,
        _ => false,
    }
}

/// Bits that change with a vCPU's own registers while it runs: OSXSAVE and MWAIT; OSPKE.
fn volatile_bits(function: u32, index: u32, register: usize) -> u32 {
    match (function, index, register) {
        (0x1, 0, 2) => 1 << 27 | 1 << 3,
        (0x7, 0, 2) => 1 << 4,
        _ => 0,
    }
}

const REGISTERS: [&str; 4] = ["eax", "ebx", "ecx", "edx"];

/// Capabilities that decide what a saved state contains or whether it can be restored.
const CAPABILITIES: &[(Cap, &str)] = &[
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::Xsave2, "KVM_CAP_XSAVE2"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::KvmclockCtrl, "KVM_CAP_KVMCLOCK_CTRL"),
    (Cap::TscDeadlineTimer, "KVM_CAP_TSC_DEADLINE_TIMER"),
    (Cap::X86Smm, "KVM_CAP_X86_SMM"),
];

/// Two TSC frequencies that differ by at most this much are equal to a guest: NTP corrects up to
/// 500 ppm.
const TSC_TOLERANCE_PPM: u64 = 500;

/// One feature word of CPUID: one register of one leaf.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureWord {
    /// Leaf.
    pub function: u32,
    /// Sub-leaf.
    pub index: u32,
    /// The register: 0 to 3 for EAX, EBX, ECX, EDX.
    pub register: u8,
    /// The register's value.
    pub value: u32,
}

/// The properties of a host's processor and KVM that a guest depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompatInfo {
    /// The processor's vendor, for instance `GenuineIntel`.
    pub vendor: String,
    /// Family, model and stepping (CPUID leaf 1, EAX).
    pub signature: u32,
    /// CPUID as the guest sees it: all words that are not zero, and those that are always compared.
    pub features: Vec<FeatureWord>,
    /// Read-only MSRs that say which other MSRs exist, with their values.
    pub constants: Vec<(u32, u64)>,
    /// Number of MSRs in a saved vCPU.
    pub msr_count: u32,
    /// Digest of the list of MSRs in a saved vCPU.
    pub msr_digest: u64,
    /// Size of the XSAVE area in bytes.
    pub xsave_size: u32,
    /// KVM capabilities, by name.
    pub capabilities: Vec<String>,
    /// Frequency of the TSC in kHz; `None`: the host does not report it.
    pub tsc_khz: Option<u32>,
    /// Whether this host can give a guest a TSC of another frequency than its own.
    pub tsc_control: bool,
}

/// The first difference that keeps one host from continuing the other's guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} differs: here {here}, there {there}; use hosts with the same processor model, microcode and kernel"
)]
pub struct Mismatch {
    /// What differs.
    pub what: String,
    /// The value of the side that checks.
    pub here: String,
    /// The value of the other side.
    pub there: String,
}

impl CompatInfo {
    /// Collects the properties; `vcpu` is any vCPU of `vm`.
    pub fn new(kvm: &Kvm, vm: &Vm, vcpu: &VcpuFd, plan: &SavePlan) -> CompatInfo {
        // Read CPUID from the vCPU: KVM may give a guest more than was set.
        let own = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES);
        let cpuid = own.as_ref().unwrap_or(vm.offered_cpuid());
        let indices = plan.msr_indices();
        let bytes: Vec<u8> = indices.iter().flat_map(|i| i.to_le_bytes()).collect();
        CompatInfo {
            vendor: vendor(cpuid),
            signature: leaf(cpuid, 1, 0)[0],
            features: feature_words(cpuid),
            constants: offered::CONSTANTS
                .into_iter()
                .filter_map(|index| Some((index, msr::get_one(vcpu, index)?)))
                .collect(),
            msr_count: indices.len() as u32,
            msr_digest: xxh3_64(&bytes),
            xsave_size: plan.xsave_size() as u32,
            capabilities: CAPABILITIES
                .iter()
                .filter(|(cap, _)| kvm.check_extension(*cap))
                .map(|(_, name)| (*name).to_owned())
                .collect(),
            tsc_khz: vcpu.get_tsc_khz().ok(),
            tsc_control: plan.tsc_control(),
        }
    }

    /// Checks that each host can continue the other's guest.
    ///
    /// # Errors
    /// When the hosts differ: the error names the first difference that matters.
    pub fn check(&self, other: &CompatInfo) -> Result<(), Mismatch> {
        same("processor vendor", &self.vendor, &other.vendor)?;
        same("processor signature", &hex(self.signature), &hex(other.signature))?;
        self.check_features(other)?;
        same(
            "size of the XSAVE area",
            &self.xsave_size.to_string(),
            &other.xsave_size.to_string(),
        )?;
        same(
            "set of KVM capabilities",
            &self.capabilities.join(" "),
            &other.capabilities.join(" "),
        )?;
        same(
            "number of MTRRs or machine check banks",
            &self.constants_summary(),
            &other.constants_summary(),
        )?;
        same("set of saved MSRs", &self.msr_summary(), &other.msr_summary())?;
        self.check_tsc(other)
    }

    fn check_features(&self, other: &CompatInfo) -> Result<(), Mismatch> {
        // A word that one side lacks is zero there.
        let value = |of: &CompatInfo, word: &FeatureWord| {
            let found = of.features.iter().find(|other| other.place() == word.place());
            FeatureWord { value: found.map_or(0, |word| word.value), ..word.clone() }.describe()
        };
        for word in self.features.iter().chain(&other.features) {
            same(&word.name(), &value(self, word), &value(other, word))?;
        }
        Ok(())
    }

    /// The read-only registers with their values.
    pub fn constants_summary(&self) -> String {
        let each = |(index, value): &(u32, u64)| format!("MSR {index:#x} = {value:#x}");
        self.constants.iter().map(each).collect::<Vec<_>>().join(", ")
    }

    fn msr_summary(&self) -> String {
        format!("{} MSRs with digest {:016x}", self.msr_count, self.msr_digest)
    }

    /// A guest measures its TSC frequency once: both hosts must have the same frequency, or both
    /// must be able to scale it.
    fn check_tsc(&self, other: &CompatInfo) -> Result<(), Mismatch> {
        let (Some(a), Some(b)) = (self.tsc_khz, other.tsc_khz) else {
            return Ok(());
        };
        let apart = u64::from(a.abs_diff(b)) * 1_000_000 > u64::from(a.max(b)) * TSC_TOLERANCE_PPM;
        if apart && !(self.tsc_control && other.tsc_control) {
            return same(
                "TSC frequency (and no TSC scaling)",
                &format!("{a} kHz"),
                &format!("{b} kHz"),
            );
        }
        Ok(())
    }
}

impl FeatureWord {
    fn place(&self) -> (u32, u32, u8) {
        (self.function, self.index, self.register)
    }

    fn name(&self) -> String {
        format!(
            "CPUID leaf {:#x}.{} {}",
            self.function,
            self.index,
            REGISTERS[usize::from(self.register & 3)]
        )
    }

    fn describe(&self) -> String {
        format!("{} = {}", self.name(), hex(self.value))
    }
}

fn same(what: &str, here: &str, there: &str) -> Result<(), Mismatch> {
    if here == there {
        return Ok(());
    }
    Err(Mismatch { what: what.to_owned(), here: here.to_owned(), there: there.to_owned() })
}

fn hex(value: u32) -> String {
    format!("{value:#010x}")
}

fn vendor(cpuid: &CpuId) -> String {
    let [_, ebx, ecx, edx] = leaf(cpuid, 0, 0);
    let bytes: Vec<u8> = [ebx, edx, ecx].iter().flat_map(|r| r.to_le_bytes()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn feature_words(cpuid: &CpuId) -> Vec<FeatureWord> {
    let mut words = BTreeMap::new();
    for &(function, index, used) in FEATURE_WORDS {
        let registers = (0_u8..4).filter(|register| used[usize::from(*register)]);
        words.extend(registers.map(|register| ((function, index, register), 0)));
    }
    for entry in cpuid.as_slice() {
        let (function, index) = (entry.function, entry.index);
        for (register, value) in (0_u8..).zip([entry.eax, entry.ebx, entry.ecx, entry.edx]) {
            let value = value & !volatile_bits(function, index, usize::from(register));
            if value == 0 || is_left_out(function, index, usize::from(register)) {
                continue;
            }
            // The first entry of a leaf counts: some kernels append empty entries, which look like
            // leaf 0.
            let word = words.entry((function, index, register)).or_insert(0);
            if *word == 0 {
                *word = value;
            }
        }
    }
    let word =
        |((function, index, register), value)| FeatureWord { function, index, register, value };
    words.into_iter().map(word).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn info() -> CompatInfo {
        CompatInfo {
            vendor: "AuthenticAMD".into(),
            signature: 0x0080_0f12,
            features: vec![FeatureWord { function: 7, index: 0, register: 1, value: 0x20 }],
            constants: vec![(0x179, 32)],
            msr_count: 3,
            msr_digest: 1,
            xsave_size: 4096,
            capabilities: vec!["KVM_CAP_XCRS".into()],
            tsc_khz: Some(2_000_000),
            tsc_control: false,
        }
    }

    fn refused(change: impl FnOnce(&mut CompatInfo)) -> String {
        let mut other = info();
        change(&mut other);
        info().check(&other).unwrap_err().to_string()
    }

    #[test]
    fn equal_hosts_match() {
        info().check(&info()).unwrap();
    }

    #[test]
    fn each_difference_is_refused_with_both_values() {
        let text = refused(|o| o.vendor = "GenuineIntel".into());
        assert!(text.contains("AuthenticAMD") && text.contains("GenuineIntel"), "{text}");
        let text = refused(|o| o.features[0].value = 0x21);
        assert!(
            text.contains("leaf 0x7.0 ebx")
                && text.contains("0x00000020")
                && text.contains("0x00000021"),
            "{text}"
        );
        assert!(refused(|o| o.xsave_size = 2696).contains("2696"));
        assert!(refused(|o| o.capabilities.clear()).contains("KVM_CAP_XCRS"));
        assert!(refused(|o| o.msr_digest = 2).contains("digest 0000000000000002"));
        assert!(refused(|o| o.signature = 1).contains("0x00000001"));
        assert!(refused(|o| o.constants[0].1 = 10).contains("MSR 0x179 = 0xa"));
        // Only one side has performance counters.
        let text = refused(|o| {
            let word = FeatureWord { function: 0xa, index: 0, register: 0, value: 0x0730_0402 };
            o.features.push(word);
        });
        assert!(text.contains("leaf 0xa.0 eax") && text.contains("0x07300402"), "{text}");
    }

    /// Linux 6.1 fills the rest of the array that it returns with empty entries.
    #[test]
    fn empty_entries_are_no_leaves() {
        let entry =
            |function, eax| kvm_bindings::kvm_cpuid_entry2 { function, eax, ..Default::default() };
        let cpuid = CpuId::from_entries(&[entry(0, 0xd), entry(6, 4), entry(0, 0)]).unwrap();
        let words = feature_words(&cpuid);
        let value = |function| words.iter().find(|w| (w.function, w.register) == (function, 0));
        assert_eq!(value(0).unwrap().value, 0xd);
        assert_eq!(value(6).unwrap().value, 4);
    }

    #[test]
    fn tsc_frequency_may_wander_a_little() {
        assert!(refused(|o| o.tsc_khz = Some(2_100_000)).contains("2100000 kHz"));
        let mut near = info();
        near.tsc_khz = Some(2_000_900);
        info().check(&near).unwrap();
        let mut scaled = info();
        scaled.tsc_control = true;
        let mut far = scaled.clone();
        far.tsc_khz = Some(3_000_000);
        scaled.check(&far).unwrap();
    }
}
