//! What a run needs of an observer that watches the guest from outside.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::client::Window;
use crate::findings::Finding;

/// An outside client that loads the guest and checks its answers and its disk.
pub trait Observer {
    /// How many operations were answered so far.
    fn answered(&self) -> u64;

    /// Waits until `count` operations were answered in all; `false` when `timeout` comes first.
    fn wait_answered(&self, count: u64, timeout: Duration) -> bool;

    /// Starts a new window, and returns the former one.
    fn next_window(&self) -> Window;

    /// From now on the guest's writes may fail, or may not: the harness fills its disk. An observer without such a disk ignores
    /// this.
    fn disk_fails(&self, _fails: bool) {}

    /// The number of failed writes that the guest reported.
    fn disk_errors(&self) -> u64 {
        0
    }

    /// Checks what the guest has written so far, before the guest overwrites it: for waits that may be long on a busy host. The
    /// next [`check`](Self::check) returns the findings.
    ///
    /// # Errors
    /// When it cannot be read.
    fn keep_up(&mut self) -> Result<()> {
        Ok(())
    }

    /// The number of operations on shared objects that were judged as one history.
    fn judged(&self) -> u64;

    /// The findings since the last check; the guest goes on.
    ///
    /// # Errors
    /// When it cannot be checked.
    fn check(&mut self, patience: Duration) -> Result<Vec<Finding>>;

    /// Has the guest print this many lines on its console, if it can be ordered to.
    fn print(&self, _lines: u64) {}

    /// Ends the load, and checks that nothing acknowledged is missing.
    ///
    /// # Errors
    /// When it cannot be checked.
    fn finish(&mut self, patience: Duration) -> Result<Vec<Finding>>;

    /// Orders the guest to reset itself, repeatedly, until it does. Before an idle guest is reset, its load has
    /// [ended](Self::finish).
    ///
    /// # Errors
    /// When it cannot be told to, or its past cannot be read.
    fn reset(&mut self, _is_idle: bool) -> Result<()> {
        bail!("this guest cannot be told to reset itself")
    }

    /// Waits until a guest answers that has been reset, checks that everything an idle guest had on its disk is there, and begins
    /// anew: what the guest kept in memory only is gone. Then the load goes on.
    ///
    /// # Errors
    /// When none answers, or the disk cannot be read.
    fn begin_anew(&mut self, _patience: Duration) -> Result<Vec<Finding>> {
        bail!("this guest cannot be told to reset itself")
    }

    /// Orders the guest to power itself off, repeatedly, until it does.
    fn power_off(&mut self);

    /// The findings on the disk, after the guest is off.
    ///
    /// # Errors
    /// When it cannot be checked.
    fn check_disk(&mut self) -> Result<DiskCheck>;
}

/// The result of the last check of the disk.
#[derive(Debug, Clone, Default)]
pub struct DiskCheck {
    /// What was checked, for people.
    pub what: String,
    /// What was found to be wrong.
    pub findings: Vec<Finding>,
}
