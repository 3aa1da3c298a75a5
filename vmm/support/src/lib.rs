//! What several crates of the monitor need of the process and its host: values of flags, files that an operator names, names that no
//! other process has, and work that may block.
//!
//! What knows a guest, a device or the protocol does not belong here; of the project this crate may depend on `io-gate-host` only.

pub mod aside;
pub mod given_file;
pub mod identity;
pub mod random;
pub mod values;
