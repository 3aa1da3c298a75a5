//! An arbiter's register: its records, and the questions to it. They are plain data, so that the
//! code that carries them out (etcd, a simulation) lives outside. The [`Client`] claims terms there
//! and holds the [`Lease`] (P2).
//!
//! For each virtual machine the register has one record of the current term, and a renewal number
//! that changes with every renewal. It is asked one question at a time, and can only compare and
//! replace. An answer may be lost, and a question that was given up may still be carried out later.

mod client;
mod images;
mod lease;
#[cfg(test)]
mod tests;

use alloc::string::String;
use alloc::vec::Vec;

use io_gate::host::Term;
use serde::{Deserialize, Serialize};

use crate::disks::set::{ImageSet, SetRecord};

pub use client::{Client, ClientError, ClientOptions, Completion, Request, Success};
pub use images::{ImageClaim, ImageStart, Last, begun};
pub use lease::{Lease, Right};

/// One term of one virtual machine, and its winner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TermRecord {
    /// The virtual machine.
    pub vm: String,
    /// The term.
    pub term: u64,
    /// The winner: a text that a process keeps unchanged, and that no other process ever uses.
    /// Terms are compared by it in addition to their numbers (P2), since an arbiter whose data went
    /// back, or another arbiter, may grant a number again.
    pub holder: String,
    /// What led to the claim.
    pub why: String,
    /// When it won, in seconds since 1970 by the winner's clock. For people; 0 until it is written.
    pub won_at: u64,
}

impl core::fmt::Display for TermRecord {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "term {} is held by {}", self.term, self.holder)
    }
}

/// The holder of a virtual machine according to the storage: the newest of the records beside its
/// disks. The storage is independent of the arbiter, so it still knows the holder if the arbiter's
/// data went back or another arbiter is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskClaim {
    /// The term.
    pub term: u64,
    /// The holder; empty if not recorded.
    pub holder: String,
    /// Whether the machine has ended in good order.
    pub ended: bool,
    /// The whole claim, for messages.
    pub text: String,
}

/// How a virtual machine may begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// In this term, if no other process is faster.
    In(Term),
    /// It has a holder.
    Taken(TermRecord),
    /// The storage knows a holder that the arbiter does not know.
    Behind(DiskClaim),
}

/// Decides how a machine may begin, from the arbiter's last record (and whether the machine has
/// ended), and from the records beside its disks.
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
    // P2: the holder named there may be running, and this arbiter would not stop it.
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
    /// Term and holder.
    #[serde(flatten)]
    pub record: TermRecord,
    /// The longest lease of any holder of this or an earlier term, in milliseconds. This long after
    /// the last renewal, no holder performs any more.
    pub lease_ms: u64,
    /// Whether the machine has ended in good order: there is no lease to wait for.
    pub ended: bool,
    /// Whose images have all that the machine has told; `None`: it has no own disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<ImageSet>,
}

impl Held {
    /// The term and its set.
    #[must_use]
    pub fn last(&self) -> Last<'_> {
        Last { record: &self.record, set: self.set.as_ref() }
    }

    /// The record of its set.
    #[must_use]
    pub fn set_record(&self) -> Option<SetRecord> {
        self.last().set_record()
    }
}

/// A record and its bytes: records are compared as whole values. Each names its process by a number
/// that is never reused, so equal values are the same record, even after the register went back to
/// an earlier state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The record.
    pub held: Held,
    /// Its bytes at the register.
    pub value: Vec<u8>,
}

/// The record and the renewal number at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// `None`: no process has ever held a term.
    pub term: Option<Written>,
    /// Changes with every renewal; 0 if there was none.
    pub renewal: i64,
}

/// A question to the register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Return the record and the renewal number.
    Look,
    /// Write `new` and renew, if record and renewal number are still those of `seen`.
    Replace {
        /// The former record and renewal number.
        seen: Snapshot,
        /// The record to write.
        new: Held,
    },
    /// Renew if the record is still this one and no renewal of this process was undone;
    /// otherwise return the record.
    Renew(Written),
}

/// The answer of the register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply<E> {
    /// To [`Question::Look`].
    Looked(Snapshot),
    /// To [`Question::Replace`]: the written record, or `None` if record or renewal number
    /// differed.
    Replaced(Option<Written>),
    /// To [`Question::Renew`]: the lease was renewed.
    Renewed,
    /// To [`Question::Renew`]: there is another record, or none; or the renewal is older than this
    /// process's last one.
    Found(Option<Written>),
    /// The result is unknown.
    Failed(E),
}
