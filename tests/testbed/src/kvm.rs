//! What this machine's `/dev/kvm` can run.
//!
//! Stock kernels need more than an accessible `/dev/kvm`: `kemari probe --json` tells.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::guest;

/// Checks that this process may open `/dev/kvm`.
///
/// # Errors
/// It may not. The text contains the remedy.
pub fn check() -> Result<()> {
    let path = Path::new("/dev/kvm");
    ensure!(
        path.exists(),
        "/dev/kvm does not exist: load the module (`modprobe kvm-intel` or `kvm-amd`) and enable virtualization in \
         the \
         firmware, or, in a virtual machine, nested virtualization"
    );
    File::options().read(true).write(true).open(path).context(
        "no permission to use /dev/kvm: add yourself to its group (`sudo usermod -aG kvm $USER`, then log in again)",
    )?;
    Ok(())
}

/// What a machine's `/dev/kvm` can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostKvm {
    /// `/dev/kvm` does not exist, or cannot be used.
    None,
    /// Only ring 3 runs at native speed: enough for the micro-guest, too slow for a stock kernel.
    #[serde(rename = "ring3-only", alias = "ring3_only")]
    RingThreeOnly,
    /// Stock kernels run.
    Full,
}

/// The result of the probe and its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// The result.
    pub kvm: HostKvm,
    /// The reason, as a text.
    pub reason: String,
}

/// Asks the monitor what this machine's `/dev/kvm` can run.
///
/// # Errors
/// `kemari` cannot be run, or its output is not the expected JSON.
pub fn probe_host(kemari: &Path) -> Result<Probe> {
    let text = guest::output(Command::new(kemari).args(["probe", "--json"]))?;
    parse(&text)
}

fn parse(text: &str) -> Result<Probe> {
    serde_json::from_str(text.trim()).with_context(|| {
        format!("`kemari probe --json`: expected {{\"kvm\": ..., \"reason\": ...}}, found {text:?}")
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn reads_the_three_findings_and_refuses_others() {
        for (word, kvm) in [
            ("none", HostKvm::None),
            ("ring3-only", HostKvm::RingThreeOnly),
            ("full", HostKvm::Full),
        ] {
            let text = format!("{{\"kvm\": \"{word}\", \"reason\": \"r\"}}\n");
            assert_eq!(parse(&text).unwrap(), Probe { kvm, reason: "r".into() });
        }
        assert!(parse("{\"kvm\": \"maybe\", \"reason\": \"r\"}").is_err());
        assert!(parse("").is_err());
    }
}
