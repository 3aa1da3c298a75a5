//! The lease as seen by the threads that perform effects (P2).
//!
//! [`ft_core::arbiter::Lease`] decides; this module adds the clock and a lock.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ft_core::Time;
use ft_core::arbiter::{Client, Lease, Right};
use io_gate_host::{Fence, Permission};

use super::clock::boottime;

/// The lease, the last answer of the client, and a signal for each change.
#[derive(Debug)]
pub(super) struct SharedLease {
    holder: String,
    max_age: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    lease: Lease,
    /// Why this process has lost the right for good.
    lost: Option<String>,
    /// Why the lease cannot be renewed now.
    reason: String,
    /// The last term that this process won.
    term: u64,
}

impl SharedLease {
    pub(super) fn new(length: Duration, holder: String) -> Self {
        let max_age = Lease::new(length).answer_max_age();
        let state = State {
            lease: Lease::new(length),
            lost: None,
            reason: "this process has not won a term".to_owned(),
            term: 0,
        };
        Self { holder, max_age, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Copies the state of the arbiter's client.
    pub(super) fn show(&self, client: &Client) {
        let mut state = self.lock();
        state.lease = client.lease().clone();
        state.lost = client.lost().map(str::to_owned);
        if client.term() > state.term {
            state.term = client.term();
            state.reason = "the lease of the former holder may not have expired yet".to_owned();
        }
        self.changed.notify_all();
    }

    /// Records why the lease cannot be renewed now.
    pub(super) fn set_reason(&self, reason: &str) {
        self.lock().reason = reason.to_owned();
    }

    fn ask_at(&self, now: Time) -> Permission {
        match self.lock().lease.ask(now) {
            Right::Held => Permission::Granted,
            Right::Lapsed => Permission::Unknown,
            Right::Lost => Permission::Lost,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fence for SharedLease {
    fn ask(&self) -> Permission {
        self.ask_at(boottime())
    }

    /// A fraction of the margin that the lease leaves unused at its end.
    fn max_age(&self) -> Duration {
        self.max_age
    }

    fn holder(&self) -> &str {
        &self.holder
    }

    fn wait(&self, longest: Duration) {
        let state = self.lock();
        let until_begin = state.lease.begins().since(boottime());
        let time = if until_begin.is_zero() { longest } else { longest.min(until_begin) };
        // The caller asks again after a wake-up or a timeout.
        drop(self.changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner));
    }

    fn term(&self) -> Option<u64> {
        Some(self.lock().term)
    }

    fn reason(&self) -> String {
        let state = self.lock();
        state.lost.as_ref().unwrap_or(&state.reason).clone()
    }
}
