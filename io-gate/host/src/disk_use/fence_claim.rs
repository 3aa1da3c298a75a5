//! The content of a fence record: which machine may write to the disk, and in which term (P2).

use crate::clock::utc;

/// Upper bound of a holder's name in bytes: with the other fields it fits into a sector.
const MAX_HOLDER: usize = 256;

/// The content of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceClaim {
    /// The virtual machine that the disk belongs to.
    pub machine: String,
    /// The term of the writer.
    pub term: u64,
    /// The process that holds the term. Empty in a record of a release that did not write it.
    pub holder: String,
    /// The time at which the record was written, in seconds since 1970. 0 if it is not known.
    pub at: u64,
    /// The machine has ended in good order: no process writes to the disk.
    pub free: bool,
}

impl FenceClaim {
    /// Whether this holder of this term has written the claim.
    #[must_use]
    pub fn is_of(&self, term: u64, holder: &str) -> bool {
        self.term == term && self.holder == shortened(holder)
    }
}

impl std::fmt::Display for FenceClaim {
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
