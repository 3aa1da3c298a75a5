//! Helpers for several crates of the monitor: values of flags, files that an operator names, unique
//! names, work that may block, and advice for a host that is short of a resource.
//!
//! Code that knows a guest, a device or the protocol does not belong here. Of this project's
//! crates, this one may depend only on `io-gate-host` and `kemari-confine`.

pub mod aside;
pub mod given_file;
pub mod identity;
pub mod random;
pub mod shortage;
pub mod values;
