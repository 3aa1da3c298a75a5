//! Asking an arbiter, as both sides of a pair do.

use std::io;

use io_gate::host::Term;

use super::{Arbiter, Verdict};

/// What became of a question.
#[derive(Debug)]
pub enum Answer {
    /// The term is the asker's.
    Granted,
    /// Somebody else's.
    Denied {
        /// Whose.
        holder: String,
    },
    /// Nobody knows.
    Unreachable {
        /// Why.
        reason: String,
    },
}

/// Claims `term`. To be done in a thread of its own: a directory or a server on a network may take its time.
pub fn ask(arbiter: &dyn Arbiter, term: Term, why: &str) -> Answer {
    match arbiter.claim(term, why) {
        Ok(Verdict::Granted) => Answer::Granted,
        Ok(Verdict::Denied(record)) => Answer::Denied { holder: record.holder },
        Err(error) => Answer::Unreachable { reason: error.to_string() },
    }
}

impl Answer {
    /// What is known when there is no thread to ask with.
    pub fn no_thread(error: &io::Error) -> Self {
        Self::Unreachable { reason: format!("no thread to ask it with: {error}") }
    }
}
