//! The panic message for a lock of the gate that was held in a panic.

/// A broken invariant of the gate panics with its lock held. No thread may continue after that.
pub(crate) const POISONED: &str = "another thread has found the gate's invariants broken";
