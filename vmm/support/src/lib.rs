//! Helpers for several crates of the monitor: values of flags, files that an operator names, unique names, and work that may
//! block.
//!
//! Code that knows a guest, a device or the protocol does not belong here; of the project this crate may depend on `io-gate-host`
//! only.

pub mod aside;
pub mod given_file;
pub mod identity;
pub mod random;
pub mod values;
