//! The identity of this process.

use std::sync::OnceLock;

use crate::random::random_id;

/// The name of this process in a term's record. No other process has it, even if hosts and
/// containers share names and process ids (P2).
#[must_use]
pub fn holder_name(role: &str) -> String {
    static NONCE: OnceLock<String> = OnceLock::new();
    let nonce = NONCE.get_or_init(random_id);
    format!("{role}@{} (pid {}, {nonce})", hostname(), std::process::id())
}

/// This host's name, as the kernel has it.
#[must_use]
pub fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
    name.unwrap_or_default().trim().to_owned()
}
