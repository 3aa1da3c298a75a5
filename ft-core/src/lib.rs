//! Epochs, the wire protocol, commit and arbitration, as state machines without I/O: events and the
//! time go in, actions come out. No clock, socket, thread or randomness inside.
//!
//! - [`wire`]: frames, messages, and their decoder, which treats its input as hostile;
//! - [`pages`]: batches of guest pages;
//! - [`handshake`]: what both sides say of themselves, and when they fit together;
//! - [`primary`]: the machine that runs the guest, and holds the commit authority (P1, P2);
//! - [`standby`]: the machine that holds the last acknowledged checkpoint (P4);
//! - [`policy`]: when to end an epoch;
//! - [`arbiter`]: what is asked of an arbiter, and until when what it has answered holds (P2).
//!
//! Both machines are driven the same way:
//!
//! ```text
//!   socket, arbiter, timer, operator --> handle(now, Event) -> Result<Vec<Action>, Illegal>
//!                                        next_deadline()    -> when to send Event::Tick
//! ```
//!
//! The actions of one event are performed in the order in which they are given. [`Illegal`] is a
//! fault of the driver: the machine has not changed. What the *other side* does wrong is no error
//! of the driver: the machine closes the link and goes on from there.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod arbiter;
pub mod bugs;
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

/// The name of one connection, given by the driver: never used twice in the life of a machine, so
/// that what a closed connection still says is told apart and ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// The driver gave an event that the state does not allow. The machine has not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{machine} in state `{state}` was given `{event}`: {expected}")]
pub struct Illegal {
    /// Which machine.
    pub machine: &'static str,
    /// The state that it is in.
    pub state: &'static str,
    /// The event.
    pub event: &'static str,
    /// What is allowed.
    pub expected: &'static str,
}
