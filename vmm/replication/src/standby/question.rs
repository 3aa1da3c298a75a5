//! A claim that the standby is about to send to the arbiter. Until it is sent it can be withdrawn
//! (P2, P7).
//!
//! If the standby has ended in the meantime, or holds no checkpoint any more, it must not win the
//! term: the term would take the right from a primary that may be alive, and then no machine runs
//! the guest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ft_core::Term;
use io_gate_host::utc;

/// A claim that takes longer than this is reported.
const LATE: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Question {
    term: Term,
    /// Whether the claim was sent or withdrawn: the first of the two wins.
    settled: Arc<AtomicBool>,
    since: Instant,
    /// The start in seconds since 1970, for messages.
    date: u64,
    /// Whether the long wait has been reported.
    told: bool,
}

impl Question {
    /// Creates a claim that is not sent yet.
    pub(super) fn new(term: Term) -> Self {
        let date = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self { term, settled: Arc::default(), since: Instant::now(), date, told: false }
    }

    /// The claimed term.
    pub(super) fn term(&self) -> Term {
        self.term
    }

    /// Call this before sending. With `true` the claim counts as sent. With `false` it was
    /// withdrawn: do not send it.
    pub(super) fn may_be_asked(&self) -> bool {
        !self.settled.swap(true, Ordering::SeqCst)
    }

    /// Withdraws the claim. With `true` it will never be sent. With `false` it was sent, or is
    /// about to be.
    pub(super) fn withdraw(&self) -> bool {
        !self.settled.swap(true, Ordering::SeqCst)
    }

    /// What the claim waits for, if it has waited long.
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
                "opening what the takeover needs since {since}: the device thread, or a backend, has not answered"
            ),
        })
    }

    /// As [`overdue`](Self::overdue), but only once.
    pub(super) fn newly_overdue(&mut self) -> Option<String> {
        let overdue = self.overdue().filter(|_| !self.told);
        self.told |= overdue.is_some();
        overdue
    }

    /// Time until [`newly_overdue`](Self::newly_overdue) has a report; `None` when it has reported.
    pub(super) fn overdue_in(&self) -> Option<Duration> {
        (!self.told).then(|| LATE.saturating_sub(self.since.elapsed()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    /// P9. Fails if a claim that hangs is not reported, or fills the log.
    #[test]
    fn what_takes_long_is_told_once() {
        let mut question = Question::new(Term(7));
        question.since = Instant::now() + Duration::from_secs(3600);
        assert_eq!((question.overdue(), question.newly_overdue()), (None, None));
        assert!(question.overdue_in().is_some());
        question.since = Instant::now().checked_sub(LATE).unwrap();
        assert!(question.newly_overdue().unwrap().contains("opening what the takeover needs"));
        assert!(question.may_be_asked());
        assert_eq!((question.newly_overdue(), question.overdue_in()), (None, None));
        let found = question.overdue().unwrap();
        assert!(found.contains("term 7") && found.contains("not answered"), "{found}");
    }
}
