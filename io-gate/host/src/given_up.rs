//! Whether a lane's current request is given up.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::poisoned::POISONED;

/// The effect is not permitted: the right is lost, the machine ends, or the request is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotPermitted;

/// Whether a lane's current request is given up.
#[derive(Debug, Default)]
pub(crate) struct GivenUp {
    is_set: AtomicBool,
    /// Held while a perform is reported and while a request is given up, so that no request is
    /// reported after it was given up. Never held across a system call.
    telling: Mutex<()>,
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

    /// Calls `tell` unless the request is given up.
    pub(crate) fn unless_set(&self, tell: impl FnOnce() -> bool) -> Result<(), NotPermitted> {
        let _telling = self.telling.lock().expect(POISONED);
        if !self.is_set() && tell() { Ok(()) } else { Err(NotPermitted) }
    }
}
