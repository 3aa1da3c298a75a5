//! The terms that this machine asks the arbiter for, so that a machine that ends gives back what it has won.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ft_core::Term;

use crate::arbiter::Answer;

/// See the module.
#[derive(Default)]
pub(super) struct Claims {
    /// Never held across a call that can block.
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    under_way: usize,
    won: Option<Term>,
}

/// A term is being asked for, until this is dropped.
pub(super) struct UnderWay(Arc<Claims>);

impl Claims {
    /// A term is about to be asked for.
    pub(super) fn begin(self: &Arc<Self>) -> UnderWay {
        self.lock().under_way += 1;
        UnderWay(self.clone())
    }

    /// The last term that was won, once nothing is asked for any more; the error of a question that has no answer within
    /// `patience`.
    pub(super) fn settled(&self, patience: Duration) -> Result<Option<Term>, ()> {
        let until = Instant::now() + patience;
        let mut state = self.lock();
        while state.under_way > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(());
            }
            let waited = self.ended.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(state.won)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UnderWay {
    /// What the arbiter has said of `term`.
    pub(super) fn is_answered(&self, term: Term, answer: &Answer) {
        if matches!(answer, Answer::Granted) {
            let won = &mut self.0.lock().won;
            *won = (*won).max(Some(term));
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.lock().under_way -= 1;
        self.0.ended.notify_all();
    }
}
