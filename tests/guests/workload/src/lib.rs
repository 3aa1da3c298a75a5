//! The messages between the micro-guest and the client that judges it.
//!
//! Both ends of a run link this crate: the guest, which serves operations over UDP and logs them on
//! its disk, and the outside observer. The observer knows nothing of the product. It recomputes the
//! answers that the guest must give (P1, P3) and the contents that its disk must have, and so finds
//! each loss, rollback or duplicate. The crate must not depend on any crate.
//!
//! * [`request`] and [`reply`] are the two datagrams, on UDP port [`GUEST_PORT`].
//! * [`record`] is one entry of the guest's log on disk.
//! * [`chain`] is the hash chain over all applied operations.
//! * [`page`] is the pattern of a page that the guest dirties in the background.
//!
//! Each operation takes effect exactly once. A client numbers its requests with an increasing
//! `seq`, has one outstanding at a time, and repeats a request until it is answered. The guest
//! stores each client's last `seq` and its reply. A repetition gets the same reply and changes
//! nothing; an older `seq` gets [`Status::Stale`].

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

/// Maximum number of clients of a guest. A further client gets [`Status::TooManyClients`].
pub const MAX_CLIENTS: usize = 256;

/// Maximum number of keys in the guest's table. A further key gets [`Status::Full`].
pub const MAX_KEYS: usize = 4096;
