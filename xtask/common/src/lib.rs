//! Parts that the project's commands share: cargo with the environment of the caller's shell, the
//! programs that it builds, and files named on a command line.
//!
//! This crate may not depend on a crate of this workspace, and contains no command: `xtask` and
//! `kemari-gate-check` depend on it.

pub mod build;
pub mod given_file;
pub mod list;
pub mod report_file;
pub mod stop;
