//! Scheduling points between calls. `points.sh` compiles the product's crates so that each branch
//! calls [`__sanitizer_cov_trace_pc`]. Taking and releasing an uncontended lock makes no other
//! call; at these points another thread can run in between.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::faults;
use crate::scheduler;

/// Number of branches that remain until [`passed`] is called. Only the thread that has the turn
/// counts.
static LEFT: AtomicU64 = AtomicU64::new(u64::MAX);

/// Calls [`passed`] after this many branches, counted over all threads.
pub(crate) fn set_left(blocks: u64) {
    LEFT.store(blocks, Ordering::Relaxed);
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_cov_trace_pc() {
    if scheduler::me().is_none() {
        return;
    }
    scheduler::is_begun();
    let left = LEFT.load(Ordering::Relaxed) - 1;
    LEFT.store(left, Ordering::Relaxed);
    if left == 0 {
        scheduler::block_point();
    }
    if faults::is_armed() {
        faults::passed_block();
    }
}
