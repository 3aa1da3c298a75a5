//! The limits of the machine, as `kemari probe --limits` measures them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// The results of `kemari probe --limits`: medians in microseconds.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Limits {
    /// A guest exits to user space and comes back.
    pub(super) exit_us: f64,
    /// A computing guest is taken off the processor, and its thread parked.
    pub(super) stop_us: f64,
    /// KVM returns the state of one vCPU and of the interrupt controllers.
    pub(super) state_us: f64,
    /// The calls that make up `state_us`.
    pub(super) calls_us: BTreeMap<String, f64>,
    /// 64 bytes there and back over loopback.
    pub(super) round_trip_us: f64,
    /// The limits for each number of pages.
    pub(super) pages: Vec<PageLimits>,
}

/// The limits for this many dirty pages.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct PageLimits {
    /// The number of pages.
    pub(super) count: u64,
    /// The dirty log is read and cleared.
    pub(super) log_us: f64,
    /// The pages are copied.
    pub(super) copy_us: f64,
    /// Their bytes go over loopback, and an answer comes back.
    pub(super) send_us: f64,
}

impl PageLimits {
    /// The lower bound of a pause: the pages are found and copied.
    #[must_use]
    pub(super) fn pause_us(&self) -> f64 {
        self.log_us + self.copy_us
    }
}

impl Limits {
    /// Measures them for these numbers of pages.
    ///
    /// # Errors
    /// When `kemari` cannot measure them.
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
        found.copied().with_context(|| format!("no limits were measured for {count} pages"))
    }
}
