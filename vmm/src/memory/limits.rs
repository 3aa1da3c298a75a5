//! What this process may map at all (getrlimit(2)): found at start, since later an allocation that fails ends the process.

use rustix::process::{Resource, getrlimit};

use super::mib;

/// What a process needs besides copies of the guest's memory: the program, its threads' stacks and heaps, copies of pages on their
/// way (P9).
const OWN: u64 = 1 << 30;

/// A limit is too low.
#[derive(Debug, thiserror::Error)]
#[error(
    "guest memory {}: expected {name} of {} at least ({copies} times {}, {} for kemari itself, and {} that it has by now), found {}: raise it to {} \
     (`{command}`, in KiB), or lower --memory",
    mib(*.guest), mib(*.wanted), mib(*.guest), mib(OWN), mib(*.used), mib(*.limit), .wanted.div_ceil(1024)
)]
pub struct LimitError {
    name: &'static str,
    command: &'static str,
    guest: u64,
    /// How often it is mapped.
    copies: u64,
    used: u64,
    wanted: u64,
    limit: u64,
}

/// Whether this process may map `guest` bytes, `copies` times, and what it needs itself.
///
/// # Errors
/// When a limit is lower.
pub(crate) fn check_limits(guest: u64, copies: u64) -> Result<(), LimitError> {
    // statm: the size of the program, and of its data and stacks, in pages (proc(5)). Where nothing can be read nothing is added.
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = |at: usize| statm.split(' ').nth(at).and_then(|text| text.trim().parse().ok());
    let used = |at: usize| pages(at).unwrap_or(0_u64) * crate::layout::PAGE_SIZE;
    for (resource, name, command, used) in [
        (Resource::As, "a limit of address space (RLIMIT_AS)", "ulimit -v", used(0)),
        (Resource::Data, "a limit of data (RLIMIT_DATA)", "ulimit -d", used(5)),
    ] {
        let Some(limit) = getrlimit(resource).current else { continue };
        let wanted = guest.saturating_mul(copies).saturating_add(OWN).saturating_add(used);
        if wanted > limit {
            return Err(LimitError { name, command, guest, copies, used, wanted, limit });
        }
    }
    Ok(())
}
