//! A question to the arbiter: it is asked some time after the standby wants it to be, and withdrawn until then (P2, P7).
//!
//! A term that is won for a standby that ends meanwhile, or holds nothing any more, takes the right from a primary that may
//! live, and the guest is nowhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ft_core::Term;
use io_gate_host::utc;

/// What takes longer is told.
const LATE: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Question {
    term: Term,
    /// Whether it has been asked, or withdrawn: what comes first holds.
    settled: Arc<AtomicBool>,
    since: Instant,
    /// The same for people, in seconds since 1970.
    date: u64,
    /// Whether it is on record that it takes long.
    told: bool,
}

impl Question {
    /// One that is not asked yet.
    pub(super) fn new(term: Term) -> Self {
        let date = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self { term, settled: Arc::default(), since: Instant::now(), date, told: false }
    }

    /// What is asked for.
    pub(super) fn term(&self) -> Term {
        self.term
    }

    /// `true` for who is to ask now: it counts as asked from here on.
    pub(super) fn may_be_asked(&self) -> bool {
        !self.settled.swap(true, Ordering::SeqCst)
    }

    /// `true`: it will never be asked. `false`: it has been, or is about to be.
    pub(super) fn withdraw(&self) -> bool {
        !self.settled.swap(true, Ordering::SeqCst)
    }

    /// What it waits for, where that takes long.
    pub(super) fn overdue(&self) -> Option<String> {
        if self.since.elapsed() < LATE {
            return None;
        }
        let (term, since) = (self.term, utc(self.date));
        Some(match self.settled.load(Ordering::SeqCst) {
            true => {
                format!("the arbiter was asked for term {term} at {since}, and has not answered")
            }
            false => format!(
                "what a takeover needs is being opened since {since}: the device thread, or what is behind the devices, has not answered"
            ),
        })
    }

    /// The same, once.
    pub(super) fn newly_overdue(&mut self) -> Option<String> {
        let overdue = self.overdue().filter(|_| !self.told);
        self.told |= overdue.is_some();
        overdue
    }

    /// When to look at that again; none: it has been told.
    pub(super) fn overdue_in(&self) -> Option<Duration> {
        (!self.told).then(|| LATE.saturating_sub(self.since.elapsed()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    /// P9. Fails where a question that hangs says nothing, or fills the log.
    #[test]
    fn what_takes_long_is_told_once() {
        let mut question = Question::new(Term(7));
        question.since = Instant::now() + Duration::from_secs(3600);
        assert_eq!((question.overdue(), question.newly_overdue()), (None, None));
        assert!(question.overdue_in().is_some());
        question.since = Instant::now().checked_sub(LATE).unwrap();
        assert!(question.newly_overdue().unwrap().contains("being opened"));
        assert!(question.may_be_asked());
        assert_eq!((question.newly_overdue(), question.overdue_in()), (None, None));
        let found = question.overdue().unwrap();
        assert!(found.contains("term 7") && found.contains("not answered"), "{found}");
    }
}
