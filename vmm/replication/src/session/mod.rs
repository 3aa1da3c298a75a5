//! What both sides of a session share: frames on the link, the Hello, the marks beside the disks,
//! and the state of a machine in a checkpoint.

mod frames;
pub(crate) mod hello;
pub(crate) mod marks;
mod state;

pub(crate) use frames::{ReadEnd, Watched, read_frames};
pub use hello::disk_claim;
pub use marks::mark_files;
pub(crate) use state::hash_memory_telling;
pub use state::{MachineState, StateBlobError, hash_memory};
