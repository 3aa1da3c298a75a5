//! The terms that this machine claims from the arbiter. A machine that ends releases the term that
//! it has won.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ft_core::Term;
use kemari_arbiter::ClaimAnswer;

/// See the module.
#[derive(Default)]
pub(super) struct Claims {
    /// Never held across a call that can block.
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    pending: usize,
    last: Option<Last>,
}

/// The result of the last claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Last {
    /// This machine has won the term.
    Won(Term),
    /// Another machine has won the term, and so it runs the guest.
    Lost,
}

/// A claim without an answer yet. Dropping it ends the claim.
pub(super) struct PendingClaim(Arc<Claims>);

impl Claims {
    /// Call this before a claim is sent to the arbiter.
    pub(super) fn begin(self: &Arc<Self>) -> PendingClaim {
        self.lock().pending += 1;
        PendingClaim(self.clone())
    }

    /// Waits until no claim is pending and returns the result of the last answered one. Returns
    /// an error if a claim has no answer within `patience`.
    pub(super) fn settled(&self, patience: Duration) -> Result<Option<Last>, ()> {
        let waited =
            self.ended.wait_timeout_while(self.lock(), patience, |state| state.pending > 0);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.pending == 0 { Ok(state.last) } else { Err(()) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PendingClaim {
    /// Records the arbiter's answer for `term`.
    pub(super) fn is_answered(&self, term: Term, answer: &ClaimAnswer) {
        let last = match answer {
            ClaimAnswer::Granted => Last::Won(term),
            ClaimAnswer::Denied { .. } => Last::Lost,
            ClaimAnswer::Unreachable { .. } => return,
        };
        self.0.lock().last = Some(last);
    }
}

impl Drop for PendingClaim {
    fn drop(&mut self) {
        self.0.lock().pending -= 1;
        self.0.ended.notify_all();
    }
}
