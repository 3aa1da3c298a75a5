//! The status that `kemari ctl status` returns.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;

/// Quantiles of a distribution, in the unit of the measure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Quantiles {
    /// The median.
    pub p50: u64,
    /// The 99th percentile.
    pub p99: u64,
    /// The maximum.
    pub max: u64,
}

/// The answer to `kemari ctl status`.
#[derive(Debug, Clone)]
pub struct Status(Value);

impl Status {
    /// Requests the status of the process that listens at `socket`.
    ///
    /// # Errors
    /// The process does not answer.
    pub fn ask(kemari: &Path, socket: &Path) -> Result<Self> {
        control(kemari, socket, &["status"]).map(Self)
    }

    /// The name of the state; empty if the status has none.
    pub fn state(&self) -> &str {
        self.0["state"].as_str().unwrap_or_default()
    }

    /// Whether the process runs the guest.
    pub fn runs_guest(&self) -> bool {
        self.0["role"] == "primary" || self.state() == "active"
    }

    /// Whether the process has taken over the guest and has recorded the takeover's duration.
    pub fn has_taken_over(&self) -> bool {
        self.runs_guest() && self.takeover_us().is_some()
    }

    /// Whether a standby holds a checkpoint and could take over.
    pub fn is_protected(&self) -> bool {
        self.state() == "protected"
    }

    /// Whether a standby holds a checkpoint, even if it could not take over now.
    pub fn has_standby(&self) -> bool {
        self.is_protected() || self.is_degraded()
    }

    /// Whether a standby holds a checkpoint but could not take over.
    pub fn is_degraded(&self) -> bool {
        self.state() == "degraded"
    }

    /// Whether effects are held because the arbiter does not answer.
    pub fn holds_effects(&self) -> bool {
        self.0["waits_for_arbiter"] == true
    }

    /// A number at the top level; 0 if the status has none.
    pub fn number(&self, name: &str) -> u64 {
        self.0[name].as_u64().unwrap_or_default()
    }

    /// Time from suspicion until the guest runs, in microseconds; `None` without a takeover.
    pub fn takeover_us(&self) -> Option<u64> {
        self.0["takeover_us"].as_u64()
    }

    /// The quantiles of a measure.
    pub fn quantiles(&self, name: &str) -> Quantiles {
        let number = |quantile: &str| self.0[name][quantile].as_u64().unwrap_or_default();
        Quantiles { p50: number("p50"), p99: number("p99"), max: number("max") }
    }

    /// Number of compared checkpoints, and of those that differed.
    pub fn verified(&self) -> (u64, u64) {
        let number = |name: &str| self.0["verify"][name].as_u64().unwrap_or_default();
        (number("checked"), number("mismatches"))
    }

    /// The whole status.
    pub fn json(&self) -> &Value {
        &self.0
    }
}

/// Sends a command to the process that listens at `socket`, and returns the answer.
///
/// # Errors
/// The process does not answer, or refuses.
pub fn control(kemari: &Path, socket: &Path, arguments: &[&str]) -> Result<Value> {
    let output = Command::new(kemari)
        .args(["ctl", "--control"])
        .arg(socket)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot run {}", kemari.display()))?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        bail!("`kemari ctl {}` failed: {}", arguments.join(" "), reason.trim());
    }
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("`kemari ctl {}` did not print JSON", arguments.join(" ")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Fails if the first status after a takeover counts: the duration is recorded a moment later.
    #[test]
    fn a_takeover_is_one_when_its_time_is_known() {
        let status =
            |takeover: Value| Status(json!({ "role": "primary", "takeover_us": takeover }));
        assert!(status(Value::Null).runs_guest() && !status(Value::Null).has_taken_over());
        assert!(status(json!(5)).has_taken_over());
    }
}
