//! A lease on the right to perform effects, by its holder's own clock (P2): the part of an
//! arbiter's client that decides without the arbiter.
//!
//! ```text
//!   NONE -- won, renewed --> HELD <-- renewed --> LAPSED        lost (from every state): LOST
//!                             |  time passes        ^
//!                             +---------------------+
//! ```
//!
//! The holder of a term renews by changing a key at the arbiter, in a transaction that fails once a
//! later term has a holder. The winner of the next term has seen the key's last change.
//!
//! - *The holder performs* only until `sent + lease - guard`, where `sent` is when it **sent** the
//!   last renewal that the arbiter has **confirmed**.
//! - *The winner performs* only from `seen + lease`, where `seen` is when it **first saw** the last
//!   renewal; its winning transaction fails if there was a later one.
//!
//! Claim: the two never perform at the same time. Let `W` be the winning transaction. A renewal
//! confirmed to the old holder came before `W` in the arbiter's order, since its condition fails
//! after `W`. The winner saw that renewal or a later one, since otherwise `W`'s own condition
//! fails. The renewal was sent before it was seen. So in real time the holder ends at `sent +
//! (lease - guard) (1 + r)` at the latest, and the winner begins at `seen + lease (1 - r)` at the
//! earliest, where `r` is the error of a clock's rate. With `guard = lease / 8` the first is
//! earlier for every `r` below 6 %. Linux keeps a clock's rate within 0.05 % of a source that is
//! itself accurate to 0.01 %. The rest of the guard covers a system call that was begun in the
//! lease's last moment.
//!
//! Only rates matter: the two clocks are never compared. An answer that is late, lost or duplicated
//! lengthens no lease: the holder counts from sending, the winner from seeing.

use core::time::Duration;

use crate::Time;

/// The part of a lease that its holder leaves unused: one in this many.
const GUARD: u32 = 8;
/// The maximum age of an answer of [`Lease::ask`] on which a side acts: one in this many of the
/// lease.
const ANSWER: u32 = 128;
// P2: a winner waits longer than the oldest answer that a loser may still act on, with both clocks
// off by 6 % in the unfavourable direction.
const _: () = assert!((1000 - 1000 / GUARD + 1000 / ANSWER + 1) * 106 < 1000 * 94);

/// Whether effects may be performed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// They may be performed now.
    Held,
    /// They may not be performed now; the right may come back.
    Lapsed,
    /// They may never be performed again.
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
    /// A lease that is not held yet.
    #[must_use]
    pub fn new(length: Duration) -> Self {
        Self { length, lost: false, begins: Time(0), ends: Time(0) }
    }

    /// How long it lasts after a renewal.
    #[must_use]
    pub fn length(&self) -> Duration {
        self.length
    }

    /// The maximum age of an answer of [`ask`](Self::ask) on which a side acts.
    #[must_use]
    pub fn answer_max_age(&self) -> Duration {
        self.length / ANSWER
    }

    /// Records that a term was won. `begins` is `seen + length` of the former holder's lease;
    /// `None` if that holder was this process, or has ended its machine.
    pub fn won(&mut self, begins: Option<Time>) {
        if let Some(begins) = begins
            && !crate::deliberate!(WinnerDoesNotWait)
        {
            self.begins = self.begins.max(begins);
        }
    }

    /// When the former holder's lease is over.
    #[must_use]
    pub fn begins(&self) -> Time {
        self.begins
    }

    /// Records that the renewal sent at `sent` is confirmed now.
    pub fn renewed(&mut self, sent: Time, now: Time) {
        let from = if crate::deliberate!(LeaseFromAnswer) { now } else { sent };
        let guard = if crate::deliberate!(NoGuard) { Duration::ZERO } else { self.length / GUARD };
        self.ends = self.ends.max(from + (self.length - guard));
    }

    /// Records that this process has lost the right for good.
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
        lease.won(Some(at(1000)));
        lease.won(None);
        lease.renewed(at(500), at(510));
        assert_eq!(lease.ask(at(999)), Right::Lapsed);
        assert_eq!(lease.ask(at(1000)), Right::Held);
    }
}
