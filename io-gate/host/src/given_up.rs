//! Whether a lane's current request is given up, and how far the lane has come with it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::poisoned::POISONED;

/// The effect is not permitted: the right is lost, the machine ends, or the request is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotPermitted;

/// Whether a lane's current request is given up.
#[derive(Debug, Default)]
pub(crate) struct GivenUp {
    is_set: AtomicBool,
    /// Held while an effect is reported as performed, and while a request is given up: no request
    /// is reported after it was given up. Never held across a system call.
    telling: Mutex<()>,
    /// Number of permits that the lane has asked for: one request may take many calls.
    permits: AtomicU64,
}

impl GivenUp {
    pub(crate) fn set(&self) {
        let _telling = self.telling.lock().expect(POISONED);
        self.is_set.store(true, Ordering::Release);
    }

    /// Clears the flag for the next request.
    pub(crate) fn clear(&self) {
        self.is_set.store(false, Ordering::Release);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Acquire)
    }

    /// Counts a permit. The lane asks for one, so its previous call has returned.
    pub(crate) fn count_permit(&self) {
        self.permits.fetch_add(1, Ordering::Relaxed);
    }

    /// Number of permits so far.
    pub(crate) fn permits(&self) -> u64 {
        self.permits.load(Ordering::Relaxed)
    }

    /// Calls `tell` unless the request is given up.
    pub(crate) fn unless_set(&self, tell: impl FnOnce() -> bool) -> Result<(), NotPermitted> {
        let _telling = self.telling.lock().expect(POISONED);
        if !self.is_set() && tell() { Ok(()) } else { Err(NotPermitted) }
    }
}
