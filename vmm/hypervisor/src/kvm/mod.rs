//! KVM: opens it, checks its capabilities, and creates a virtual machine.

pub mod compat;
pub mod cpuid;
mod error;
pub mod exit;
mod leaf;
pub mod limits;
pub mod long_mode;
pub mod msr;
mod notify;
mod offered;
pub mod state;
pub mod trial;
pub mod vcpus;
pub mod vm;

pub use compat::{CompatInfo, Mismatch};
pub use error::VmError;
pub use exit::{ExitHandler, FatalExit};
pub use notify::{Kick, Pins};
pub use state::{ClockPolicy, StateError, VcpuState, VmState};
pub use vcpus::{VcpuError, VcpuSet};
pub use vm::{Vm, VmOptions};

use std::io::ErrorKind;
use std::os::fd::FromRawFd;
use std::os::unix::fs::OpenOptionsExt;

use kvm_ioctls::{Cap, Kvm};

const KVM_PATH: &str = "/dev/kvm";
const API_VERSION: i32 = 12;

/// Why KVM cannot be used, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The device does not exist.
    #[error(
        "{KVM_PATH} does not exist: enable virtualization (VT-x / AMD-V) in the firmware, then `modprobe kvm-intel` or \
         `modprobe kvm-amd`; inside a virtual machine or container, its host must pass {KVM_PATH} through"
    )]
    Missing,
    /// This user may not open the device.
    #[error(
        "no permission for {KVM_PATH}: add the user to its group (`sudo usermod -aG kvm $USER`, then log in again)"
    )]
    Permission,
    /// Another error of `open`.
    #[error("cannot open {KVM_PATH}: {0}")]
    Open(std::io::Error),
    /// KVM does not have the stable API.
    #[error(
        "{KVM_PATH} speaks API version {found}, expected {API_VERSION}: use Linux 2.6.22 or newer"
    )]
    ApiVersion {
        /// The host's API version.
        found: i32,
    },
    /// KVM lacks a required capability.
    #[error("this host's KVM lacks {name} ({why}): use a newer kernel")]
    Capability {
        /// The capability's name in the KVM API.
        name: &'static str,
        /// What the monitor needs it for.
        why: &'static str,
    },
}

/// Capabilities that the monitor needs: each with its name and its use.
const REQUIRED: &[(Cap, &str, &str)] = &[
    (Cap::Irqchip, "KVM_CAP_IRQCHIP", "interrupt controllers in the kernel"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY", "guest memory"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR", "real mode on Intel"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID", "CPUID for the guest"),
    (Cap::MpState, "KVM_CAP_MP_STATE", "saving vCPUs"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS", "saving pending exceptions"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS", "saving debug registers"),
    (Cap::Xsave, "KVM_CAP_XSAVE", "saving vector registers"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK", "a clock that survives takeover"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT", "pausing without a race"),
];

/// Opens `/dev/kvm` and checks that it has the required capabilities.
///
/// # Errors
/// See [`OpenError`].
pub fn open() -> Result<Kvm, OpenError> {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(KVM_PATH)
        .map_err(|e| match e.kind() {
            ErrorKind::NotFound => OpenError::Missing,
            ErrorKind::PermissionDenied => OpenError::Permission,
            // ENODEV or ENXIO: the device node exists, but the module is not loaded.
            _ if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => OpenError::Missing,
            _ => OpenError::Open(e),
        })?;
    let fd = std::os::fd::IntoRawFd::into_raw_fd(file);
    // SAFETY: the descriptor was just opened on /dev/kvm, and ownership passes to the Kvm object.
    let kvm = unsafe { Kvm::from_raw_fd(fd) };
    let found = kvm.get_api_version();
    if found != API_VERSION {
        return Err(OpenError::ApiVersion { found });
    }
    for &(cap, name, why) in REQUIRED {
        if !kvm.check_extension(cap) {
            return Err(OpenError::Capability { name, why });
        }
    }
    Ok(kvm)
}
