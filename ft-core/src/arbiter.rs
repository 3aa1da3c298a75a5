//! What is asked of an arbiter, and what it may answer: plain data, so that whoever asks (a
//! directory, etcd, a simulation) lives outside (P2).
//!
//! The contract: each term of a virtual machine is granted to at most one holder, for ever; asking
//! again for a term that one holds is granted again, so that a lost answer can be asked for again.

use alloc::string::String;

use io_gate::host::Term;
use serde::{Deserialize, Serialize};

/// A claim to be the one who performs effects for a virtual machine in a term.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The virtual machine.
    pub vm: String,
    /// The term to be won.
    pub term: Term,
    /// Who claims it: the same text for the whole life of a process, and nobody else's.
    pub holder: String,
    /// What made it ask; for people to read.
    pub why: String,
}

/// What an arbiter says to a claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The claimant holds the term.
    Granted,
    /// Somebody else does.
    Denied {
        /// Who.
        holder: String,
    },
    /// It could not be asked, or did not answer: the claim may or may not have been recorded.
    Unreachable {
        /// Why.
        reason: String,
    },
}
