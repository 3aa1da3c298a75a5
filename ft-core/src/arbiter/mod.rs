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

use io_gate::host::Term;
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
    /// Who won it: the same text for the whole life of a process, and nobody else's, ever. It is what terms are compared by
    /// besides their numbers (P2): an arbiter whose data went back, or another one, gives a number again.
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

/// What the storage says of who runs a virtual machine: the newest of the records beside its disks. It is not the arbiter's, so
/// it still knows where the arbiter's data went back, or another arbiter is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskClaim {
    /// The term.
    pub term: u64,
    /// Who holds it; empty: not written down.
    pub holder: String,
    /// The machine has ended in good order.
    pub ended: bool,
    /// All of it, for people.
    pub text: String,
}

/// How a virtual machine may begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// In this term, if nobody is faster.
    In(Term),
    /// Somebody holds it.
    Taken(TermRecord),
    /// The storage knows of a holder of whom the arbiter does not.
    Behind(DiskClaim),
}

/// How a machine may begin: by what the arbiter has last (and whether it has ended), and by what is written beside its disks.
#[must_use]
pub fn beginning(
    last: Option<(&TermRecord, bool)>,
    disk: Option<&DiskClaim>,
    seize: bool,
) -> Beginning {
    let term = last.map_or(0, |(record, _)| record.term).max(disk.map_or(0, |disk| disk.term));
    let begins = Beginning::In(Term(term).next());
    if seize {
        return begins;
    }
    // P2: whoever is written there may run, and this arbiter's word would not stop it.
    if let Some(disk) = disk.filter(|disk| !disk.ended && !is_known(last, disk)) {
        return Beginning::Behind(disk.clone());
    }
    match last {
        Some((record, false)) => Beginning::Taken(record.clone()),
        _ => begins,
    }
}

fn is_known(last: Option<(&TermRecord, bool)>, disk: &DiskClaim) -> bool {
    last.is_some_and(|(record, _)| {
        let same = record.holder.starts_with(&disk.holder);
        record.term > disk.term || (record.term == disk.term && same)
    })
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
    /// Write a beat if the record is still this one, and no beat was undone that this process has made; else give the record.
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
    /// Of [`Question::Renew`]: another record is there, or none; or the beat is older than the last one of this process.
    Found(Option<Written>),
    /// Nobody knows what became of it.
    Failed(E),
}
