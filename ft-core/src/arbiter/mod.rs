//! What is written at an arbiter's register, and what is asked of it: plain data, so that who carries it out (etcd, a
//! simulation) lives outside. The [`Client`] claims terms there and holds the [`Lease`] (P2).
//!
//! The register keeps one record of the current term for each virtual machine, and a beat, which changes with every
//! renewal. It is asked one question at a time, and can do no more than compare and replace. An answer may be lost, and a
//! question that was given up may still be carried out later.

mod client;
mod lease;
#[cfg(test)]
mod tests;

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

pub use client::{Client, ClientOptions, Success, Told, Trouble, Wish};
pub use lease::{Lease, Right};

/// One term of one virtual machine, and who won it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TermRecord {
    /// The virtual machine.
    pub vm: String,
    /// The term.
    pub term: u64,
    /// Who won it: the same text for the whole life of a process, and nobody else's, ever.
    pub holder: String,
    /// What made it ask.
    pub why: String,
    /// When it won, in seconds since 1970 by the winner's clock; for people to read, and 0 until it is written.
    pub won_at: u64,
}

impl core::fmt::Display for TermRecord {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "term {} is held by {}", self.term, self.holder)
    }
}

/// The record of the current term.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Whose it is.
    #[serde(flatten)]
    pub record: TermRecord,
    /// The longest lease that anyone may have who has held this or an earlier term, in milliseconds: so long after the
    /// last renewal nobody performs any more.
    pub lease_ms: u64,
    /// The machine has ended in good order: no lease has to be waited for.
    pub ended: bool,
}

/// A record, and how it is written: records are compared as whole values. They name their process by a number that is
/// never used again, so equal values are the same record, also after the register went back to an earlier state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The record.
    pub held: Held,
    /// Its bytes at the register.
    pub value: Vec<u8>,
}

/// Record and beat at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// None: nobody has ever held a term.
    pub term: Option<Written>,
    /// Different after every renewal; 0 where there was none.
    pub beat: i64,
}

/// What to ask of the register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Give record and beat.
    Look,
    /// Write `new`, and a beat, if both are still as in `seen`.
    Replace {
        /// As they were.
        seen: Snapshot,
        /// What to write.
        new: Held,
    },
    /// Write a beat if the record is still this one; else give the record.
    Renew(Written),
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply<E> {
    /// Of [`Question::Look`].
    Looked(Snapshot),
    /// Of [`Question::Replace`]: what was written, or that something else was there.
    Replaced(Option<Written>),
    /// Of [`Question::Renew`]: the beat was written.
    Renewed,
    /// Of [`Question::Renew`]: another record is there, or none.
    Found(Option<Written>),
    /// Nobody knows what became of it.
    Failed(E),
}
