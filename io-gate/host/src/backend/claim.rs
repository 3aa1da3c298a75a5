//! The content of the record beside a disk: which machine may write to it, and in which term (P2).

use crate::clock::utc;

/// The most bytes of a holder's name that are kept: with the other fields it fits into a sector.
const MAX_HOLDER: usize = 256;

/// The content of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The virtual machine that the disk belongs to.
    pub machine: String,
    /// The term of the writer.
    pub term: u64,
    /// The process. Empty in a record of a release that did not write it.
    pub holder: String,
    /// When the record was written, in seconds since 1970; 0 if not known.
    pub at: u64,
    /// The machine has ended in good order: no process writes to the disk.
    pub free: bool,
}

impl Claim {
    /// Whether this holder of this term wrote it.
    #[must_use]
    pub fn is_of(&self, term: u64, holder: &str) -> bool {
        self.term == term && self.holder == shortened(holder)
    }
}

impl std::fmt::Display for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { machine, term, holder, at, free } = self;
        let holder = if holder.is_empty() { "a process of an earlier release" } else { holder };
        let state = if *free { "given up" } else { "held" };
        let since = if *at > 0 { format!(" since {}", utc(*at)) } else { String::new() };
        f.write_str(&format!("machine `{machine}`, term {term}, {state} by {holder}{since}"))
    }
}

pub(super) fn shortened(holder: &str) -> &str {
    &holder[..holder.floor_char_boundary(MAX_HOLDER)]
}
