//! The panic message for a lock whose holder has panicked.

/// A thread that finds an invariant of the gate broken panics with the gate's lock held. After
/// that, no other thread may continue.
pub(crate) const POISONED: &str = "another thread has found the gate's invariants broken";
