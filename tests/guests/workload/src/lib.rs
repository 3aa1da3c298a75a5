//! The messages between the micro-guest and the client that judges it.
//!
//! Both ends of a run link this crate: the guest, which serves operations over UDP and logs them on its disk, and the
//! observer outside. The observer knows nothing of the product and finds every loss, rollback or duplicate by
//! recomputing what the guest must have answered (P1, P3) and what its disk must hold. The crate may not depend on any
//! crate.
//!
//! * [`request`] and [`reply`] are the two datagrams, on UDP port [`GUEST_PORT`].
//! * [`record`] is one entry of the guest's log on disk.
//! * [`chain`] is the hash chain over all applied operations.
//! * [`page`] is the pattern of a page that the guest dirties in the background.
//!
//! Exactly once: a client numbers its requests with an increasing `seq`, has one outstanding at a time, and repeats a
//! request until it is answered. The guest stores each client's last `seq` with its reply: a repetition gets the same
//! reply again and changes nothing; an older `seq` gets [`Status::Stale`].

#![no_std]
#![forbid(unsafe_code)]

pub mod chain;
pub mod crc;
pub mod error;
pub mod op;
pub mod page;
pub mod record;
pub mod reply;
pub mod request;
mod wire;

pub use chain::{CHAIN_START, chain_after, payload_hash};
pub use error::FormatError;
pub use op::{MAX_PAYLOAD, Op, OpCode};
pub use record::{Record, log_capacity, log_sector};
pub use reply::{REPLY_LEN, Reply, Status};
pub use request::{MAX_REQUEST_LEN, Request};

/// The UDP port on which the guest serves.
pub const GUEST_PORT: u16 = 7000;

/// Number of clients that one guest can store; another one gets [`Status::TooManyClients`].
pub const MAX_CLIENTS: usize = 256;

/// Number of keys in the guest's table; another key gets [`Status::Full`].
pub const MAX_KEYS: usize = 4096;
