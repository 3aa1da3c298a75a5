//! The standby's status, shared by several threads: the standby's own, those of a takeover, and the
//! one that answers operators.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::StandbyStatus;

/// The shared status. The lock guards only the status: no other lock is taken under it.
pub type Shown = Arc<Mutex<StandbyStatus>>;

/// Locks the status.
pub fn shown(status: &Shown) -> MutexGuard<'_, StandbyStatus> {
    status.lock().unwrap_or_else(PoisonError::into_inner)
}
