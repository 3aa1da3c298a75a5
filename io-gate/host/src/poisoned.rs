//! What a lock of the gate says that was held in a panic.

/// A broken invariant of the gate panics with its lock held; nothing may go on after that.
pub(crate) const POISONED: &str = "another thread has found the gate's invariants broken";
