//! Who uses a disk: its lock on this host and its fence record on the storage keep other machines
//! from it (P2).

pub(crate) mod disk_error;
pub mod disk_fence;
pub mod disk_lock;
mod fence_claim;
