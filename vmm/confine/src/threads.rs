//! Starts threads. The error names threads as the missing resource.

use std::io;
use std::thread::{Builder, JoinHandle};

/// Runs `work` on a thread of this name.
///
/// # Errors
/// When this process, its user or its host has reached its limit of threads.
pub fn start<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(work).map_err(|error| {
        io::Error::new(error.kind(), format!("cannot start thread `{name}`: {error}"))
    })
}
