//! Epochs, the wire protocol, commit and arbitration, as state machines without I/O: they take
//! events and the time, and return actions. They contain no clock, socket, thread or randomness.
//!
//! - [`wire`]: frames, messages, and their decoder, which treats its input as hostile;
//! - [`pages`]: batches of guest pages;
//! - [`handshake`]: the descriptions of both sides, and whether they fit together;
//! - [`primary`]: the machine that runs the guest and holds the commit authority (P1, P2);
//! - [`standby`]: the machine that holds the last acknowledged checkpoint (P4);
//! - [`disks`]: images that each host has for itself, as a part of the machine's state;
//! - [`policy`]: when to end an epoch;
//! - [`arbiter`]: questions to an arbiter, and how long its answers are valid (P2).
//!
//! Both machines are driven the same way:
//!
//! ```text
//!   socket, arbiter, timer, operator --> handle(now, Event) -> Result<Vec<Action>, Illegal>
//!                                        next_deadline()    -> when to send Event::Tick
//! ```
//!
//! The driver performs the actions of one event in the given order. [`Illegal`] is a fault of the
//! driver: the machine has not changed. A fault of the *other side* is not an error of the driver:
//! the machine closes the link and continues from there.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod arbiter;
pub mod bugs;
pub mod disks;
pub mod handshake;
pub mod pages;
pub mod policy;
pub mod primary;
pub mod standby;
#[cfg(test)]
mod testing;
mod time;
pub mod wire;

pub(crate) use bugs::deliberate;
pub use io_gate::host::{Epoch, Term};
pub use time::{Backoff, Time};

/// The name of one connection, given by the driver. It is never reused while the machine exists, so
/// that late frames of a closed connection are recognized and ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// The driver gave an event that the state does not allow. The machine has not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{machine} in state `{state}` was given `{event}`: {expected}")]
pub struct Illegal {
    /// The machine.
    pub machine: &'static str,
    /// Its state.
    pub state: &'static str,
    /// The event.
    pub event: &'static str,
    /// What is allowed.
    pub expected: &'static str,
}
