//! Judges the audit logs of all processes of a run with `kemari audit verify`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::findings::{Finding, Kind};

/// Returns the result of the verification in one line, and the findings. All processes must have
/// ended.
///
/// # Errors
/// The logs cannot be read.
pub(super) fn judge(kemari: &Path, logs: &[PathBuf]) -> Result<(String, Vec<Finding>)> {
    let output = Command::new(kemari)
        .args(["audit", "verify"])
        .args(logs)
        .output()
        .with_context(|| format!("cannot run {}", kemari.display()))?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let kind = match output.status.code() {
        Some(0) => return Ok((said, Vec::new())),
        Some(1) if said.starts_with("P2") => Kind::TwoActive,
        Some(1) => Kind::Unacknowledged,
        // A standby waits at most 50 ms for its record of an ACK. If it is killed on a busy host,
        // its log may lack the last record.
        Some(3) if said.contains(": ends before the ACK of") => {
            return Ok((first(&said), Vec::new()));
        }
        Some(3) => Kind::Behaviour,
        _ => bail!(
            "`kemari audit verify` failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        ),
    };
    Ok((first(&said), vec![Finding::new(kind, said)]))
}

fn first(said: &str) -> String {
    said.lines().next().unwrap_or_default().to_owned()
}
