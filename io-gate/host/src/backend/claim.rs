//! What the record beside a disk says: which machine may write to it, and in which term (P2).

use crate::clock::utc;

/// How much of a holder's name is kept: with all the rest it fits into a sector.
const MAX_HOLDER: usize = 256;

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The virtual machine that the disk belongs to.
    pub machine: String,
    /// The term in which it is, or was, written.
    pub term: u64,
    /// The process; empty in a record of a release that did not write it.
    pub holder: String,
    /// When it was written, in seconds since 1970; 0: not known.
    pub at: u64,
    /// The machine has ended in good order: nobody writes to the disk.
    pub free: bool,
}

impl Claim {
    /// Whether it was written by this holder of this term.
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
