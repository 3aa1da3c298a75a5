//! The error of creating a virtual machine in KVM.

/// Why the virtual machine cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// More vCPUs than KVM or 8-bit APIC ids allow.
    #[error("{wanted} vCPUs: this host's KVM supports 1 to {max}: change --cpus")]
    Cpus {
        /// The requested number of vCPUs.
        wanted: u32,
        /// The maximum on this host.
        max: u32,
    },
    /// An ioctl failed.
    #[error("{call}: {source}")]
    Ioctl {
        /// The ioctl's name.
        call: &'static str,
        /// The kernel's error.
        source: std::io::Error,
    },
    /// CPUID has more leaves than KVM accepts.
    #[error("CPUID has too many leaves for KVM_SET_CPUID2")]
    Cpuid,
}

/// Turns the error of `call` into a [`VmError`].
pub(super) fn ioctl_error(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> VmError {
    move |e| VmError::Ioctl { call, source: std::io::Error::from_raw_os_error(e.errno()) }
}
