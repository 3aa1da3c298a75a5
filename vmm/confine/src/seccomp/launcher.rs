//! Starts threads for threads that have given up the right to start any.

use std::io;
use std::sync::mpsc::{Sender, channel};

use super::{Role, threads};

type Work = Box<dyn FnOnce() + Send>;
type Failed = Box<dyn FnOnce(io::Error) + Send>;

struct Order {
    name: &'static str,
    work: Work,
    failed: Failed,
}

/// A thread that starts others. They inherit the launcher's filter, which is that of the process,
/// and not the filter of the requesting thread.
pub struct Launcher(Sender<Order>);

impl Launcher {
    /// Starts the launcher's thread. Call it on a thread with the role `main`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start() -> io::Result<Self> {
        let (sender, orders) = channel::<Order>();
        threads::start("launcher", Role::Main, move || {
            while let Ok(Order { name, work, failed }) = orders.recv() {
                if let Err(error) = threads::start(name, Role::Main, work) {
                    failed(error);
                }
            }
        })?;
        Ok(Self(sender))
    }

    /// Runs `work` in the role `main`, on a thread of this name; calls `failed` if the thread
    /// cannot be started.
    pub fn launch(
        &self,
        name: &'static str,
        work: impl FnOnce() + Send + 'static,
        failed: impl FnOnce(io::Error) + Send + 'static,
    ) {
        // Fails only if the launcher has panicked, which ends the process.
        let _ = self.0.send(Order { name, work: Box::new(work), failed: Box::new(failed) });
    }
}
