//! The hypervisor: KVM and its vCPUs, guest memory and its dirty pages, and the guest's address
//! map.
//!
//! This crate knows nothing of devices, of the gate or of the protocol: it may depend on
//! `io-gate-memory` and on crates outside this tree. The caller passes in what to run, and an
//! [`ExitHandler`] for the guest's exits.
//!
//! [`ExitHandler`]: kvm::ExitHandler

pub mod kvm;
pub mod layout;
pub mod memory;
