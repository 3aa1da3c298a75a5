//! How this process starts threads: where there can be no more of them, the message says that it is threads that are lacking.

use std::io;
use std::thread::{Builder, JoinHandle};

/// Has a thread of this name do `work`.
///
/// # Errors
/// When this process, its user or its host may have no more threads.
pub fn start<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(work).map_err(|error| {
        io::Error::new(error.kind(), format!("no thread `{name}` can be started: {error}"))
    })
}
