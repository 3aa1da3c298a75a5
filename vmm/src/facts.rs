//! What of a host has to be equal on both sides, as the handshake compares it.

use crate::kvm::CompatInfo;

/// The facts of a host: name and value. The TSC's frequency is not among them: two hosts of one
/// model measure it differently in the last digits, and KVM scales it where it must.
#[must_use]
pub fn facts(host: &CompatInfo) -> Vec<(String, String)> {
    let fact = |name: &str, value: String| (name.to_owned(), value);
    let mut facts = vec![
        fact("processor vendor", host.vendor.clone()),
        fact("processor signature", format!("{:#x}", host.signature)),
        fact("size of the XSAVE area", host.xsave_size.to_string()),
        fact("registers saved", format!("{} (digest {:x})", host.msr_count, host.msr_digest)),
        fact("KVM capabilities", host.capabilities.join(" ")),
    ];
    facts.extend(host.features.iter().map(|word| {
        let register = ["EAX", "EBX", "ECX", "EDX"][usize::from(word.register & 3)];
        let name = format!("CPUID {:#x}/{} {register}", word.function, word.index);
        (name, format!("{:#010x}", word.value))
    }));
    facts
}
