//! What the project's commands share: cargo as the caller's shell would run it, what it builds, files that a command line names.
//!
//! It may not depend on a crate of this workspace, and contains no command: `xtask` and `kemari-gate-check` depend on it.

pub mod build;
pub mod given_file;
pub mod list;
pub mod report_file;
pub mod stop;
