//! Faults that the guest finds in its own machine. Replies contain their count; the first few are
//! printed.

use crate::say;
use core::sync::atomic::{AtomicU64, Ordering};

const PRINTED: u64 = 16;

static FAULTS: AtomicU64 = AtomicU64::new(0);

/// Number of faults so far.
pub fn count() -> u64 {
    FAULTS.load(Ordering::Relaxed)
}

/// Counts a fault. Returns whether to print it.
fn another() -> bool {
    FAULTS.fetch_add(1, Ordering::Relaxed) < PRINTED
}

/// Records that a CPU's clock stepped back from `before` to `after`.
pub fn clock_stepped_back(before: u64, after: u64) {
    if another() {
        say!("FAULT clock stepped back from {before} ns to {after} ns");
    }
}

/// Records that a page does not hold its last contents.
pub fn bad_page(index: u64, generation: u64, found: Option<(u64, u64)>) {
    if another() {
        say!("FAULT page {index} should hold generation {generation}, holds {found:?}");
    }
}

/// Records that the disk's contents or behaviour are wrong.
pub fn bad_disk(what: &str, sector: u64) {
    if another() {
        say!("FAULT disk, sector {sector}: {what}");
    }
}

/// Records that an entry of the table is damaged.
pub fn bad_entry(key: u32) {
    if another() {
        say!("FAULT table entry of key {key} is damaged");
    }
}
