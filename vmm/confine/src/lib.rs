//! Confines the process: the system calls that each thread may make, the start of threads, and the
//! log, which is the only way to standard error.
//!
//! This crate depends on no other crate of the project: its caller passes in what it needs
//! ([`Terminal`]).

pub mod logging;
pub mod seccomp;
mod terminal;

pub use seccomp::threads;
pub use terminal::Terminal;
