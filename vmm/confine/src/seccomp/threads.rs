//! Starts threads, each in its role. The error names threads as the missing resource.

use std::io;
use std::os::fd::RawFd;
use std::thread::{Builder, JoinHandle};

use super::{Role, enter};

/// Runs `work` in `role`, on a thread of this name.
///
/// # Errors
/// When this process, its user or its host has reached its limit of threads.
pub fn start<T: Send + 'static>(
    name: &str,
    role: Role,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    start_waking(name, role, Vec::new(), work)
}

/// As [`start`], for work that wakes other threads through the counters `events`.
///
/// # Errors
/// As [`start`].
pub fn start_waking<T: Send + 'static>(
    name: &str,
    role: Role,
    events: Vec<RawFd>,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    start_without_role(name, move || {
        enter(role, &events);
        work()
    })
}

/// As [`start`], for work that calls [`enter`] itself, when it knows the counters of its role.
///
/// # Errors
/// As [`start`].
pub fn start_without_role<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(work).map_err(|error| {
        io::Error::new(error.kind(), format!("cannot start thread `{name}`: {error}"))
    })
}
