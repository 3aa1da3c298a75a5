//! Work that may block, done aside: by a thread of its own, which is waited for, and not for ever (P9).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

/// Whether such work is under way: one thread at most is stuck in it.
#[derive(Clone, Debug, Default)]
pub(super) struct Aside(Arc<AtomicBool>);

impl Aside {
    /// Has `thread` do `work`, which is about `what`, and waits for what comes of it. Where other work is under way it is not
    /// begun.
    ///
    /// # Errors
    /// What came of it, or that nothing has within `patience`; it is left to itself then.
    pub(super) fn run<T: Send + 'static>(
        &self,
        (thread, what): (&str, &str),
        patience: Duration,
        work: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        if self.0.swap(true, Ordering::SeqCst) {
            return Err(format!("{what}: still no answer"));
        }
        let under_way = self.0.clone();
        let (tell, told) = sync_channel(1);
        let work = move || {
            let done = work();
            // Before it is told: whoever is told may have more to do.
            under_way.store(false, Ordering::SeqCst);
            // Nobody waits any more where it took too long.
            let _ = tell.send(done);
        };
        if let Err(error) = std::thread::Builder::new().name(thread.to_owned()).spawn(work) {
            self.0.store(false, Ordering::SeqCst);
            return Err(format!("{what}: no thread for it: {error}"));
        }
        told.recv_timeout(patience).unwrap_or_else(|error| match error {
            RecvTimeoutError::Timeout => Err(format!("{what}: no answer for {patience:?}")),
            RecvTimeoutError::Disconnected => Err(format!("{what}: its thread has panicked")),
        })
    }

    /// Whether work has not come to its end.
    pub(super) fn is_under_way(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
