//! A lease on the right to perform effects, by the holder's own clock (P2).
//!
//! The holder of a term renews by changing a key at the arbiter, in a transaction that fails once
//! somebody else holds a later term. Whoever wins the next term has seen the key's last change.
//!
//! - *The holder performs* only until `sent + lease - guard`, where `sent` is when it **sent** the
//!   last renewal that the arbiter has **confirmed**.
//! - *The winner performs* only from `seen + lease`, where `seen` is when it **first saw** the last
//!   renewal; its winning transaction fails if there was a later one.
//!
//! Claim: never both. Let `W` be the winning transaction. A renewal confirmed to the old holder came
//! before `W` in the arbiter's order, since after `W` its condition fails; and the winner saw it, or
//! one that came after it, since otherwise `W`'s own condition fails. It was sent before it was seen.
//! So by real time the holder ends at `sent + (lease - guard) (1 + r)` at the latest and the winner
//! begins at `seen + lease (1 - r)` at the earliest, where `r` is the error of a clock's rate. With
//! `guard = lease / 8` the first is earlier for every `r` below 6 %; Linux keeps a clock's rate within
//! 0.05 % of a source that is itself good to 0.01 %. The rest of the guard is for the system call that
//! was begun in the lease's last moment.
//!
//! Only rates matter: the two clocks are never compared. No answer that is late, lost or doubled
//! lengthens anything: the holder counts from sending, the winner from seeing.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use io_gate_host::{Fence, Permission};

use super::clock::Boottime;

/// The part of a lease that its holder leaves unused; see the module.
const GUARD: u32 = 8;

/// See the module.
#[derive(Debug)]
pub(super) struct Lease {
    length: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Why the right is gone for good.
    lost: Option<String>,
    /// The former holder may perform until then.
    begins: Boottime,
    /// This holder may perform until then.
    ends: Boottime,
    /// What keeps the lease from being renewed.
    trouble: String,
    /// The term won last.
    term: u64,
}

impl Lease {
    pub(super) fn new(length: Duration) -> Self {
        let state = State {
            lost: None,
            begins: Boottime::default(),
            ends: Boottime::default(),
            trouble: "no term has been won here".to_owned(),
            term: 0,
        };
        Self { length, state: Mutex::new(state), changed: Condvar::new() }
    }

    pub(super) fn length(&self) -> Duration {
        self.length
    }

    /// `term` was won, in which effects may be performed from `begins` on.
    pub(super) fn won(&self, term: u64, begins: Option<Boottime>) {
        let mut state = self.lock();
        state.term = state.term.max(term);
        state.begins = state.begins.max(begins.unwrap_or_default());
        state.trouble = "the lease of the former holder may not have ended yet".to_owned();
        self.changed.notify_all();
    }

    /// A renewal sent at `sent` is confirmed.
    pub(super) fn renewed(&self, sent: Boottime) {
        let mut state = self.lock();
        state.ends = state.ends.max(sent + (self.length - self.length / GUARD));
        self.changed.notify_all();
    }

    /// The lease cannot be renewed now.
    pub(super) fn trouble(&self, reason: &str) {
        self.lock().trouble = reason.to_owned();
    }

    /// Somebody else has the right.
    pub(super) fn lost(&self, reason: String) {
        self.lock().lost.get_or_insert(reason);
        self.changed.notify_all();
    }

    fn ask_at(&self, now: Boottime) -> Permission {
        let state = self.lock();
        match &state.lost {
            Some(_) => Permission::Lost,
            None if now < state.begins || now >= state.ends => Permission::Unknown,
            None => Permission::Granted,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fence for Lease {
    fn ask(&self) -> Permission {
        self.ask_at(Boottime::now())
    }

    fn wait(&self, longest: Duration) {
        let state = self.lock();
        let until_begin = state.begins - Boottime::now();
        let time = if until_begin.is_zero() { longest } else { longest.min(until_begin) };
        // Whoever waits asks again, whatever woke it.
        drop(self.changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner));
    }

    fn term(&self) -> Option<u64> {
        Some(self.lock().term)
    }

    fn reason(&self) -> String {
        let state = self.lock();
        state.lost.as_ref().unwrap_or(&state.trouble).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_millis(800);

    fn at(millis: u64) -> Boottime {
        Boottime::default() + Duration::from_millis(millis)
    }

    #[test]
    fn p2_the_holder_stops_a_guard_before_its_lease_ends() {
        let lease = Lease::new(LENGTH);
        assert_eq!(lease.ask_at(at(0)), Permission::Unknown);
        lease.won(1, None);
        lease.renewed(at(100));
        assert_eq!(lease.ask_at(at(799)), Permission::Granted);
        assert_eq!(lease.ask_at(at(800)), Permission::Unknown);
        lease.renewed(at(700));
        assert_eq!(lease.ask_at(at(1399)), Permission::Granted);
        assert_eq!(lease.ask_at(at(1400)), Permission::Unknown);
    }

    #[test]
    fn p2_a_winner_waits_for_the_former_lease_and_its_next_term_does_not_shorten_that() {
        let lease = Lease::new(LENGTH);
        lease.won(1, Some(at(1000)));
        lease.renewed(at(500));
        assert_eq!(lease.ask_at(at(999)), Permission::Unknown);
        assert_eq!(lease.ask_at(at(1000)), Permission::Granted);
        let lease = Lease::new(LENGTH);
        lease.won(1, Some(at(1000)));
        lease.won(1, None);
        lease.renewed(at(500));
        assert_eq!(lease.ask_at(at(999)), Permission::Unknown);
    }

    #[test]
    fn p2_a_confirmation_that_comes_out_of_order_shortens_nothing_and_a_loss_is_for_good() {
        let lease = Lease::new(LENGTH);
        lease.won(1, None);
        lease.renewed(at(500));
        lease.renewed(at(100));
        assert_eq!(lease.ask_at(at(1199)), Permission::Granted);
        lease.lost("term 2 is held by b".to_owned());
        lease.renewed(at(600));
        assert_eq!(lease.ask_at(at(700)), Permission::Lost);
        assert!(lease.reason().contains("held by b"));
    }

    /// The proof's bound, by numbers: clocks that are wrong by 5 %, both to the bad side.
    #[test]
    fn p2_the_guard_covers_clocks_that_are_five_per_cent_off() {
        let holder_ends = (LENGTH - LENGTH / GUARD).mul_f64(1.05);
        let winner_begins = LENGTH.mul_f64(0.95);
        assert!(holder_ends < winner_begins);
    }
}
