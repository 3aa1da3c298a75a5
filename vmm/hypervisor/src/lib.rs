//! The hypervisor: KVM and its vCPUs, guest memory and which pages of it have changed, and the guest's address map.
//!
//! It knows nothing of devices, of the gate or of the protocol: it may depend on `io-gate-memory` and on crates that are
//! not of this tree. What it is asked to run, and what is done at an exit of the guest, is handed in by an [`ExitHandler`].
//!
//! [`ExitHandler`]: kvm::ExitHandler

pub mod kvm;
pub mod layout;
pub mod memory;
