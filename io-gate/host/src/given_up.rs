//! Whether anybody still wants what a lane is at.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::poisoned::POISONED;

/// What was to be let out is not permitted: the right is lost, or the machine ends, or nobody wants it any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotPermitted;

/// Whether what a lane is at is not wanted any more.
#[derive(Debug, Default)]
pub(crate) struct GivenUp {
    is_set: AtomicBool,
    /// Held while it is told that something is performed, and while it is given up: so that nobody is told of one that was
    /// given up before. Never held across a system call.
    telling: Mutex<()>,
}

impl GivenUp {
    pub(crate) fn set(&self) {
        let _telling = self.telling.lock().expect(POISONED);
        self.is_set.store(true, Ordering::Release);
    }

    /// The next is wanted.
    pub(crate) fn clear(&self) {
        self.is_set.store(false, Ordering::Release);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Acquire)
    }

    /// Tells, unless it is given up.
    pub(crate) fn unless_set(&self, tell: impl FnOnce() -> bool) -> Result<(), NotPermitted> {
        let _telling = self.telling.lock().expect(POISONED);
        if !self.is_set() && tell() { Ok(()) } else { Err(NotPermitted) }
    }
}
