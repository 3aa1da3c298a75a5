//! What two hosts must have in common for one to continue the other's guest; compared in the handshake.

use kvm_bindings::CpuId;
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::cpuid::leaf;
use super::state::SavePlan;
use super::vm::Vm;

/// Feature words of CPUID that a guest may rely on: leaf, sub-leaf, and which of EAX, EBX, ECX, EDX. Words that hold ids,
/// sizes of the current state or the topology are left out: they differ between the cores of one host.
const FEATURE_WORDS: &[(u32, u32, [bool; 4])] = &[
    (0x1, 0, [true, false, true, true]),
    (0x6, 0, [true, false, false, false]),
    (0x7, 0, [false, true, true, true]),
    (0x7, 1, [true, true, true, true]),
    (0x7, 2, [false, false, false, true]),
    (0xd, 0, [true, false, false, true]),
    (0xd, 1, [true, false, true, true]),
    (0x24, 0, [false, true, false, false]),
    (0x4000_0001, 0, [true, false, false, false]),
    (0x8000_0001, 0, [false, false, true, true]),
    (0x8000_0007, 0, [false, false, false, true]),
    (0x8000_0008, 0, [true, true, false, false]),
    (0x8000_0021, 0, [true, false, false, false]),
];
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

/// TSC frequencies that differ by no more than this are the same to a guest: NTP corrects as much (500 ppm).
const TSC_TOLERANCE_PPM: u64 = 500;

/// One word of CPUID features.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureWord {
    /// Leaf.
    pub function: u32,
    /// Sub-leaf.
    pub index: u32,
    /// 0 to 3: EAX, EBX, ECX, EDX.
    pub register: u8,
    /// Its bits.
    pub value: u32,
}

/// A host's processor and KVM, as far as a guest depends on them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompatInfo {
    /// The processor's vendor, for instance `GenuineIntel`.
    pub vendor: String,
    /// Family, model and stepping (CPUID leaf 1, EAX).
    pub signature: u32,
    /// CPUID features as KVM offers them to guests.
    pub features: Vec<FeatureWord>,
    /// Number of MSRs in a saved vCPU.
    pub msr_count: u32,
    /// Digest of the list of MSRs in a saved vCPU.
    pub msr_digest: u64,
    /// Bytes of the XSAVE area.
    pub xsave_size: u32,
    /// KVM capabilities, by name.
    pub capabilities: Vec<String>,
    /// Frequency of the TSC; absent when the host cannot tell.
    pub tsc_khz: Option<u32>,
    /// Whether this host can give a guest a TSC of another frequency.
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
    /// Gathers what there is to know; `vcpu` is any vCPU of `vm`.
    pub fn new(kvm: &Kvm, vm: &Vm, vcpu: &VcpuFd, plan: &SavePlan) -> CompatInfo {
        let cpuid = vm.supported_cpuid();
        let indices = plan.msr_indices();
        let bytes: Vec<u8> = indices.iter().flat_map(|i| i.to_le_bytes()).collect();
        CompatInfo {
            vendor: vendor(cpuid),
            signature: leaf(cpuid, 1, 0)[0],
            features: feature_words(cpuid),
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

    /// Whether a guest of one host can be continued by the other, either way round.
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
        same("set of saved MSRs", &self.msr_summary(), &other.msr_summary())?;
        self.check_tsc(other)
    }

    fn check_features(&self, other: &CompatInfo) -> Result<(), Mismatch> {
        same(
            "number of CPUID feature words",
            &self.features.len().to_string(),
            &other.features.len().to_string(),
        )?;
        for (a, b) in self.features.iter().zip(&other.features) {
            same(&a.name(), &a.describe(), &b.describe())?;
        }
        Ok(())
    }

    fn msr_summary(&self) -> String {
        format!("{} MSRs with digest {:016x}", self.msr_count, self.msr_digest)
    }

    /// A guest calibrates its TSC once: the standby must have the same frequency, or be able to imitate it.
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
    let mut words = Vec::new();
    for &(function, index, used) in FEATURE_WORDS {
        let values = leaf(cpuid, function, index);
        for (register, value) in (0u8..).zip(values) {
            if used[usize::from(register)] {
                words.push(FeatureWord { function, index, register, value });
            }
        }
    }
    words
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
