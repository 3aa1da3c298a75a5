//! A KVM virtual machine monitor whose guests survive the death of their host.

pub mod boot;
pub mod kvm;
pub mod layout;
pub mod memory;
pub mod probe;
