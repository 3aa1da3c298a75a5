//! Asks an arbiter on behalf of either side of a pair.
//!
//! A claim blocks for as long as the arbiter takes; the record of an end has a time limit of 5 s
//! (P9).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use io_gate::host::Term;
use kemari_support::aside::{self, NoAnswer};

use super::{Arbiter, Verdict};

/// Time limit for an arbiter to record an end.
const LAST_NOTE: Duration = Duration::from_secs(5);

/// The answer to a claim.
#[derive(Debug)]
pub enum ClaimAnswer {
    /// The claimant has the term.
    Granted,
    /// Another machine has the term.
    Denied {
        /// The holder.
        holder: String,
    },
    /// The arbiter gave no answer.
    Unreachable {
        /// The reason.
        reason: String,
    },
}

/// Claims `term`. Blocks for as long as the arbiter takes, so call it on a thread of its own: the
/// directory or server may be slow.
pub fn ask(arbiter: &dyn Arbiter, term: Term, why: &str) -> ClaimAnswer {
    match arbiter.claim(term, why) {
        Ok(Verdict::Granted) => ClaimAnswer::Granted,
        Ok(Verdict::Denied(record)) => ClaimAnswer::Denied { holder: record.holder },
        Err(error) => ClaimAnswer::Unreachable { reason: error.to_string() },
    }
}

/// Records at the arbiter that no machine acts in `term` any more.
///
/// # Errors
/// When the arbiter refuses, or does not answer within 5 s. A directory on a network may never
/// answer, and the process must end nevertheless.
pub fn end(arbiter: &Arc<dyn Arbiter>, term: Term) -> Result<(), String> {
    let asked = arbiter.clone();
    let note = move || asked.end(term).map_err(|error| error.to_string());
    let begun = aside::begin("term-end", note);
    begun.and_then(|answer| answer.within(LAST_NOTE)).unwrap_or_else(|missing| match missing {
        // Call the arbiter from this thread: an unrecorded end leaves a term that the next start
        // must seize. The end of the whole process has a time limit.
        NoAnswer::NoThread(_) => arbiter.end(term).map_err(|error| error.to_string()),
        NoAnswer::Late | NoAnswer::Panicked => {
            Err(format!("the arbiter has not answered within {LAST_NOTE:?}"))
        }
    })
}

impl ClaimAnswer {
    /// The answer when there is no thread to ask with.
    pub fn no_thread(error: &io::Error) -> Self {
        Self::Unreachable {
            reason: format!("cannot start the thread that asks the arbiter: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::path::Path;
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, channel};

    use ft_core::arbiter::DiskClaim;
    use ft_core::handshake::ArbiterView;
    use io_gate_host::Fence;

    use super::*;
    use crate::{ArbiterError, FileArbiter};

    /// An arbiter whose [`Arbiter::end`] blocks until the test allows it to answer.
    #[derive(Debug)]
    struct Hanging(FileArbiter, Mutex<Receiver<()>>);

    impl Arbiter for Hanging {
        fn kind(&self) -> &'static str {
            self.0.kind()
        }
        fn holder(&self) -> &str {
            self.0.holder()
        }
        fn answers(&self) -> Result<(), ArbiterError> {
            self.0.answers()
        }
        fn claim(&self, term: Term, why: &str) -> Result<Verdict, ArbiterError> {
            self.0.claim(term, why)
        }
        fn follow(&self, term: Term, holder: &str) {
            self.0.follow(term, holder);
        }
        fn begin_on(&self, disk: Option<&DiskClaim>, seize: bool) -> Result<Term, ArbiterError> {
            self.0.begin_on(disk, seize)
        }
        fn end(&self, term: Term) -> Result<(), ArbiterError> {
            self.1.lock().unwrap().recv().unwrap();
            self.0.end(term)
        }
        fn mark(&self) -> Result<ArbiterView, ArbiterError> {
            self.0.mark()
        }
        fn counter_mark(&self) -> Result<ArbiterView, ArbiterError> {
            self.0.counter_mark()
        }
        fn read_marks(&self) -> Result<ArbiterView, ArbiterError> {
            self.0.read_marks()
        }
        fn fence(&self) -> Arc<dyn Fence> {
            self.0.fence()
        }
    }

    fn file(dir: &Path) -> FileArbiter {
        FileArbiter::open(dir, "vm", "a".to_owned()).unwrap()
    }

    /// P7. Fails if a process waits for an arbiter without a limit.
    #[test]
    fn an_end_does_not_wait_for_an_arbiter_that_hangs() {
        let dir = tempfile::tempdir().unwrap();
        let (answer, answers) = channel();
        let arbiter: Arc<dyn Arbiter> = Arc::new(Hanging(file(dir.path()), Mutex::new(answers)));
        let term = arbiter.begin(false).unwrap();
        let error = end(&arbiter, term).unwrap_err();
        assert!(error.contains("has not answered"), "{error}");
        // Let both calls of `end` through: the late one, and the one below.
        answer.send(()).unwrap();
        answer.send(()).unwrap();
        assert_eq!(end(&arbiter, term), Ok(()));
        assert!(file(dir.path()).begin(false).is_ok());
    }
}
