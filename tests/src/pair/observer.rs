//! What a run needs of whoever watches the guest from outside.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::client::Window;
use crate::findings::Finding;

/// An outside client that loads the guest, and checks what it answers and what its disk holds.
pub trait Observer {
    /// How many operations were answered so far.
    fn answered(&self) -> u64;

    /// Waits until `count` operations were answered in all; `false` when `timeout` comes first.
    fn wait_answered(&self, count: u64, timeout: Duration) -> bool;

    /// Starts a new window, and gives the one that ends.
    fn next_window(&self) -> Window;

    /// From now on the guest's writes may fail, or may not: the harness fills its disk. Where there is no word for it,
    /// such a disk is not had.
    fn disk_fails(&self, _fails: bool) {}

    /// How many writes failed so far, by the guest's own word.
    fn disk_errors(&self) -> u64 {
        0
    }

    /// Looks at what the guest has written so far, before it writes over it: for waits that may be long on a busy host. What is
    /// wrong is said by the next [`check`](Self::check).
    ///
    /// # Errors
    /// When it cannot be read.
    fn keep_up(&mut self) -> Result<()> {
        Ok(())
    }

    /// How many operations on what clients share were judged as one history.
    fn judged(&self) -> u64;

    /// What went wrong since the last check; the guest goes on.
    ///
    /// # Errors
    /// When it cannot be checked.
    fn check(&mut self, patience: Duration) -> Result<Vec<Finding>>;

    /// Has the guest print so many lines on its console, where there is a way to tell it.
    fn print(&self, _lines: u64) {}

    /// Ends the load, and checks that nothing acknowledged is missing.
    ///
    /// # Errors
    /// When it cannot be checked.
    fn finish(&mut self, patience: Duration) -> Result<Vec<Finding>>;

    /// Has the guest reset itself: it is asked until it does. Where it is idle, its load has been [ended](Self::finish) before.
    ///
    /// # Errors
    /// When it cannot be told to, or its past cannot be read.
    fn reset(&mut self, _is_idle: bool) -> Result<()> {
        bail!("this guest cannot be told to reset itself")
    }

    /// Waits until a guest answers that has been reset, checks that all that an idle one had on its disk is there, and begins anew:
    /// what it kept in memory only is gone. Then the load goes on.
    ///
    /// # Errors
    /// When none answers, or the disk cannot be read.
    fn begin_anew(&mut self, _patience: Duration) -> Result<Vec<Finding>> {
        bail!("this guest cannot be told to reset itself")
    }

    /// Has the guest power itself off, and asks until it does.
    fn power_off(&mut self);

    /// What is wrong with the disk, now that the guest is off.
    ///
    /// # Errors
    /// When it cannot be checked.
    fn check_disk(&mut self) -> Result<DiskCheck>;
}

/// What a last look at the disk found.
#[derive(Debug, Clone, Default)]
pub struct DiskCheck {
    /// What was looked at, for people.
    pub what: String,
    /// What is wrong.
    pub findings: Vec<Finding>,
}
