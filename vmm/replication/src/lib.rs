//! Replication of a machine: the primary that sends checkpoints, the standby that holds them, the
//! link between the two, and the takeover.
//!
//! Threads, sockets and clocks around the protocol core belong here, and so does the content of a
//! checkpoint. The decisions of the protocol are in `ft-core`, and the devices in `kemari-machine`.
//! This crate does not know the command line and the control socket.

pub mod descriptors;
pub mod link;
pub mod own_disk;
pub mod ownership;
pub mod primary;
mod repeats;
pub mod session;
pub mod standby;
pub mod stats;
pub mod takeover;
