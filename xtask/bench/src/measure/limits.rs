//! The limits of the machine, as `kemari probe --limits` measures them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// The results of `kemari probe --limits`: medians in microseconds.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Limits {
    /// Time of an exit of the guest to user space and back.
    pub(super) exit_us: f64,
    /// Time to stop a computing guest and to park its thread.
    pub(super) stop_us: f64,
    /// Time of KVM to return the state of one vCPU and of the interrupt controllers.
    pub(super) state_us: f64,
    /// The time of each call that is part of `state_us`.
    pub(super) calls_us: BTreeMap<String, f64>,
    /// Time of a round trip of 64 bytes over loopback.
    pub(super) round_trip_us: f64,
    /// The limits for each number of pages.
    pub(super) pages: Vec<PageLimits>,
}

/// The limits for one number of dirty pages.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct PageLimits {
    /// The number of pages.
    pub(super) count: u64,
    /// Time to read and clear the dirty log.
    pub(super) log_us: f64,
    /// Time to copy the pages.
    pub(super) copy_us: f64,
    /// Time to send the pages over loopback and to receive an answer.
    pub(super) send_us: f64,
}

impl PageLimits {
    /// The lower bound of a pause: finding and copying the pages.
    #[must_use]
    pub(super) fn pause_us(&self) -> f64 {
        self.log_us + self.copy_us
    }
}

impl Limits {
    /// Measures the limits for these numbers of pages.
    ///
    /// # Errors
    /// `kemari` cannot measure them.
    pub(super) fn measure(kemari: &Path, counts: &[u64]) -> Result<Self> {
        let counts: Vec<String> = counts.iter().map(u64::to_string).collect();
        let output = Command::new(kemari)
            .args(["probe", "--json", "--limits", "--pages"])
            .arg(counts.join(","))
            .output()
            .with_context(|| format!("cannot run {}", kemari.display()))?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`kemari probe --limits` failed: {}", error.trim());
        serde_json::from_slice(&output.stdout)
            .context("`kemari probe --limits` did not print its limits")
    }

    /// The limits for `count` pages.
    ///
    /// # Errors
    /// [`measure`](Self::measure) was not called for this number.
    pub(super) fn of(&self, count: u64) -> Result<PageLimits> {
        let found = self.pages.iter().find(|pages| pages.count == count);
        found
            .copied()
            .with_context(|| format!("`kemari probe --limits` measured nothing for {count} pages"))
    }
}
