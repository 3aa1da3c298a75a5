//! A lease on the right to perform effects, by its holder's own clock (P2): the part of an arbiter's
//! client that decides, without the arbiter.
//!
//! ```text
//!   NONE -- won, renewed --> HELD <-- renewed --> LAPSED        lost (from every state): LOST
//!                             |  time passes        ^
//!                             +---------------------+
//! ```
//!
//! The holder performs only until `sent + length - guard`, where `sent` is when it *sent* the last
//! renewal that was confirmed. The winner of the next term performs only from `seen + length`,
//! where `seen` is when it *first saw* the last renewal, and it wins only if there was none since.
//! A renewal was sent before it was seen, so with clocks whose rates differ by less than the guard,
//! the first ends before the second begins. An answer that is late, lost or doubled lengthens nothing.

use core::time::Duration;

use crate::Time;

/// The part of a lease that its holder leaves unused: one in so many.
const GUARD: u32 = 8;

/// Whether effects may be performed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// They may, now.
    Held,
    /// Not now; it may come back.
    Lapsed,
    /// Never again.
    Lost,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Lease {
    length: Duration,
    lost: bool,
    begins: Time,
    ends: Time,
}

impl Lease {
    /// One that holds nothing yet.
    #[must_use]
    pub fn new(length: Duration) -> Self {
        Self { length, lost: false, begins: Time(0), ends: Time(0) }
    }

    /// How long it runs from one renewal.
    #[must_use]
    pub fn length(&self) -> Duration {
        self.length
    }

    /// A term was won. `former` is when the former holder's last renewal was first seen, unless that
    /// was this process, or has ended its machine.
    pub fn won(&mut self, former: Option<Time>) {
        if let Some(seen) = former
            && !crate::deliberate!(WinnerDoesNotWait)
        {
            self.begins = self.begins.max(seen + self.length);
        }
    }

    /// The renewal sent at `sent` is confirmed, now.
    pub fn renewed(&mut self, sent: Time, now: Time) {
        let from = if crate::deliberate!(LeaseFromAnswer) { now } else { sent };
        self.ends = self.ends.max(from + (self.length - self.length / GUARD));
    }

    /// Somebody else has the right.
    pub fn lost(&mut self) {
        self.lost = true;
    }

    /// Whether effects may be performed.
    #[must_use]
    pub fn ask(&self, now: Time) -> Right {
        if self.lost {
            Right::Lost
        } else if now < self.begins || now >= self.ends {
            Right::Lapsed
        } else {
            Right::Held
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn at(millis: u64) -> Time {
        Time(millis * MS)
    }

    #[test]
    fn p2_the_holder_counts_from_sending_and_stops_a_guard_early() {
        let mut lease = Lease::new(Duration::from_millis(800));
        assert_eq!(lease.ask(at(0)), Right::Lapsed);
        lease.won(None);
        lease.renewed(at(100), at(700));
        assert_eq!(lease.ask(at(799)), Right::Held);
        assert_eq!(lease.ask(at(800)), Right::Lapsed);
        lease.renewed(at(50), at(790));
        assert_eq!(lease.ask(at(800)), Right::Lapsed);
        lease.renewed(at(810), at(820));
        assert_eq!(lease.ask(at(821)), Right::Held);
        lease.lost();
        lease.renewed(at(900), at(910));
        assert_eq!(lease.ask(at(911)), Right::Lost);
    }

    #[test]
    fn p2_the_winner_waits_for_the_former_holder() {
        let mut lease = Lease::new(Duration::from_millis(800));
        lease.won(Some(at(200)));
        lease.renewed(at(500), at(510));
        assert_eq!(lease.ask(at(999)), Right::Lapsed);
        assert_eq!(lease.ask(at(1000)), Right::Held);
    }
}
