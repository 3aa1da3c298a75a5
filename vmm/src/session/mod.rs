//! What both sides of a session share: frames on the link, the words of the handshake, and the state of a machine in a checkpoint.

mod frames;
mod hello;
mod state;

pub(crate) use frames::{ReadEnd, Watched, read_frames};
pub(crate) use hello::describe;
pub(crate) use state::hash_memory_telling;
pub use state::{MachineState, StateBlobError, hash_memory};
