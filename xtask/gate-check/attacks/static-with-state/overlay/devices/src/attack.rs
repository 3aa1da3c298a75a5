//! Counts frames where no saved state sees it: after a takeover the count begins anew.

use core::sync::atomic::{AtomicU64, Ordering};

static FRAMES: AtomicU64 = AtomicU64::new(0);

pub(crate) fn transmit() -> u64 {
    FRAMES.fetch_add(1, Ordering::Relaxed)
}
