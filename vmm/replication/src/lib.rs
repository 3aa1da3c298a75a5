//! Replication of a machine: the primary that sends checkpoints, the standby that holds them, the link between the two, and the
//! takeover.
//!
//! Threads, sockets and clocks around the protocol core belong here, with what a checkpoint holds of a machine. The decisions of
//! the protocol do not (they are in `ft-core`), nor do devices (`kemari-machine` has them), nor the command line and the control
//! socket, which this crate does not know.

pub mod link;
pub mod primary;
mod repeats;
pub mod session;
pub mod standby;
pub mod stats;
pub mod takeover;
