//! Checks how much memory this process may map (getrlimit(2)).
//!
//! The check is at the start, because an allocation that fails later ends the process.

use std::sync::OnceLock;

use rustix::process::{Resource, getrlimit};

use super::mib;

/// Bytes that a process may need besides copies of the guest's memory: stacks and heaps of threads,
/// copies of pages in transit (P9).
const OWN: u64 = 1 << 30;

/// Bytes of addresses and of data that were mapped when this process began. Later mappings are
/// within [`OWN`]. Counting them would make the advice grow with each higher limit, because threads
/// map more when they may.
static BEGAN_WITH: OnceLock<[u64; 2]> = OnceLock::new();

const ADDRESSES: (Resource, &str, &str) =
    (Resource::As, "a limit of address space (RLIMIT_AS)", "ulimit -v");
const DATA: (Resource, &str, &str) = (Resource::Data, "a limit of data (RLIMIT_DATA)", "ulimit -d");

/// A limit of this process is too low.
#[derive(Debug, thiserror::Error)]
#[error(
    "guest memory {}: expected {name} of {} at least ({copies} times {}, and {} that kemari uses now), found {}: \
     raise it (`{command} {}`, in KiB, leaves room for checkpoints and for kemari itself), or lower --memory",
    mib(*.guest), mib(*.wanted), mib(*.guest), mib(*.used), mib(*.limit), advised(*.enough)
)]
pub struct LimitError {
    name: &'static str,
    command: &'static str,
    guest: u64,
    /// Number of mappings of guest memory.
    copies: u64,
    used: u64,
    wanted: u64,
    limit: u64,
    /// The sufficient limit, in bytes.
    enough: u64,
}

/// Records what this process has mapped. Call it before there is a second thread.
pub fn begin() {
    BEGAN_WITH.get_or_init(|| [used(0), used(5)]);
}

/// The limit to advise, in KiB, with a margin of 16 MiB: the starting size varies between
/// processes.
fn advised(enough: u64) -> u64 {
    (enough + (16 << 20)).div_ceil(1024)
}

fn began_with(resource: Resource) -> u64 {
    let [addresses, data] = *BEGAN_WITH.get_or_init(|| [used(0), used(5)]);
    if resource == Resource::As { addresses } else { data }
}

/// Checks that this process may map `guest` bytes `copies` times besides what it has mapped: the
/// machine needs these mappings in any case.
///
/// # Errors
/// When a limit is lower.
pub fn check_limits(guest: u64, copies: u64) -> Result<(), LimitError> {
    check_addresses(guest, copies)?;
    check(DATA, guest, copies, used(5))
}

/// Does what [`check_limits`] does, for memory shared with other processes, which does not count as
/// data (getrlimit(2)).
pub(super) fn check_addresses(guest: u64, copies: u64) -> Result<(), LimitError> {
    check(ADDRESSES, guest, copies, used(0))
}

/// A warning if the limits may be too low for a checkpoint in addition to what [`check_limits`] has
/// allowed.
pub fn scarce(guest: u64, copies: u64) -> Option<String> {
    [ADDRESSES, DATA].into_iter().find_map(|(resource, name, command)| {
        let limit = getrlimit(resource).current?;
        let enough = enough(guest, copies, began_with(resource));
        (enough > limit).then(|| {
            format!(
                "protection of this guest may fail, as the limit on mapped memory is low: expected {name} of {}, \
                 which is enough for guest memory of {}, found {}: raise it (`{command} {}`, in KiB)",
                mib(enough), mib(guest), mib(limit), advised(enough)
            )
        })
    })
}

/// The limit that suffices with a checkpoint of all of the guest's memory (docs/threads.md,
/// "Bounds").
fn enough(guest: u64, copies: u64, used: u64) -> u64 {
    guest.saturating_mul(copies + 1).saturating_add(OWN).saturating_add(used)
}

fn check(
    (resource, name, command): (Resource, &'static str, &'static str),
    guest: u64,
    copies: u64,
    used: u64,
) -> Result<(), LimitError> {
    let wanted = guest.saturating_mul(copies).saturating_add(used);
    match getrlimit(resource).current {
        Some(limit) if wanted > limit => {
            let enough = enough(guest, copies, began_with(resource)).max(wanted);
            Err(LimitError { name, command, guest, copies, used, wanted, limit, enough })
        }
        _ => Ok(()),
    }
}

/// Bytes that this process has mapped: the program's size (field 0) or its data and stacks (field
/// 5) in statm, which counts pages (proc(5)). Zero if it cannot be read.
fn used(at: usize) -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(at).and_then(|text| text.trim().parse::<u64>().ok());
    pages.unwrap_or(0) * crate::layout::PAGE_SIZE
}
