//! The interface of an observer, which watches the guest from outside.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::client::Window;
use crate::findings::Finding;

/// An outside client that sends requests to the guest, and checks its answers and its disk.
pub trait Observer {
    /// Number of answered operations.
    fn answered(&self) -> u64;

    /// Waits until `count` operations are answered in all; `false` after `timeout`.
    fn wait_answered(&self, count: u64, timeout: Duration) -> bool;

    /// Starts a new window and returns the former one.
    fn next_window(&self) -> Window;

    /// Sets whether the guest's writes may fail from now on, because the harness fills its disk. An
    /// observer without such a disk ignores this.
    fn disk_fails(&self, _fails: bool) {}

    /// Number of failed writes that the guest reported.
    fn disk_errors(&self) -> u64 {
        0
    }

    /// Checks the guest's disk during long waits, before the guest overwrites its records. The next
    /// [`check`](Self::check) returns the findings.
    ///
    /// # Errors
    /// The disk cannot be read.
    fn keep_up(&mut self) -> Result<()> {
        Ok(())
    }

    /// Number of operations on shared objects that were judged as one history.
    fn judged(&self) -> u64;

    /// Returns the findings since the last check. The guest continues.
    ///
    /// # Errors
    /// The guest does not answer, or its disk cannot be read.
    fn check(&mut self, patience: Duration) -> Result<Vec<Finding>>;

    /// Makes the guest print this many lines on its console. An observer that cannot do this
    /// ignores it.
    fn print(&self, _lines: u64) {}

    /// Ends the load, and checks that no acknowledged operation is missing.
    ///
    /// # Errors
    /// The guest does not answer.
    fn finish(&mut self, patience: Duration) -> Result<Vec<Finding>>;

    /// Orders the guest to reset itself, repeatedly, until it does. If the guest is idle, its load
    /// has [ended](Self::finish).
    ///
    /// # Errors
    /// The guest cannot reset itself, or its disk cannot be read.
    fn reset(&mut self, _is_idle: bool) -> Result<()> {
        bail!("this guest does not reset itself on request")
    }

    /// Waits until the guest answers after its reset, checks the disk of an idle guest, and starts
    /// a new history, because the guest's memory begins anew. Then the load continues.
    ///
    /// # Errors
    /// The guest does not answer, or its disk cannot be read.
    fn begin_anew(&mut self, _patience: Duration) -> Result<Vec<Finding>> {
        bail!("this guest does not reset itself on request")
    }

    /// Orders the guest to power itself off, repeatedly, until it does.
    fn power_off(&mut self);

    /// Checks the disk after the guest is off.
    ///
    /// # Errors
    /// The disk cannot be read.
    fn check_disk(&mut self) -> Result<DiskCheck>;
}

/// The result of the final check of the disk.
#[derive(Debug, Clone, Default)]
pub struct DiskCheck {
    /// A description of the check.
    pub what: String,
    /// The violations on the disk.
    pub findings: Vec<Finding>,
}
