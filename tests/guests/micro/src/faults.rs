//! What the guest has found wrong with its own machine: counted for the replies, the first few printed.

use crate::say;
use core::sync::atomic::{AtomicU64, Ordering};

const PRINTED: u64 = 16;

static FAULTS: AtomicU64 = AtomicU64::new(0);

/// How many were found so far.
pub fn count() -> u64 {
    FAULTS.load(Ordering::Relaxed)
}

/// Counts one, and says whether it is worth a line.
fn another() -> bool {
    FAULTS.fetch_add(1, Ordering::Relaxed) < PRINTED
}

/// The clock of a CPU went from `before` to `after`.
pub fn clock_stepped_back(before: u64, after: u64) {
    if another() {
        say!("FAULT clock stepped back from {before} ns to {after} ns");
    }
}

/// A page is not what was written last.
pub fn bad_page(index: u64, generation: u64, found: Option<(u64, u64)>) {
    if another() {
        say!("FAULT page {index} should hold generation {generation}, holds {found:?}");
    }
}

/// The disk does not hold, or do, what it should.
pub fn bad_disk(what: &str, sector: u64) {
    if another() {
        say!("FAULT disk, sector {sector}: {what}");
    }
}

/// An entry of the table is not what was put there.
pub fn bad_entry(key: u32) {
    if another() {
        say!("FAULT table entry of key {key} is damaged");
    }
}
