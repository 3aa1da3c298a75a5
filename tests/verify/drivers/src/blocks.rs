//! Points between the calls: the product's crates are compiled so that they call [`__sanitizer_cov_trace_pc`] wherever a branch may
//! go two ways (`points.sh`). A lock that nobody else wants is taken and let go without any call; here another thread comes between.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::faults;
use crate::scheduler;

/// So many blocks are passed before something happens. Only the thread that has the turn counts.
static LEFT: AtomicU64 = AtomicU64::new(u64::MAX);

/// After so many blocks, of whichever threads, [`passed`] is called.
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
