//! The terms that this machine asks the arbiter for, so that a machine that ends gives back what it has won.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ft_core::Term;
use kemari_arbiter::Answer;

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
    last: Option<Last>,
}

/// What came of the last claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Last {
    /// The term is this machine's.
    Won(Term),
    /// It is another's, and so is the guest.
    Lost,
}

/// A term is being asked for, until this is dropped.
pub(super) struct UnderWay(Arc<Claims>);

impl Claims {
    /// A term is about to be asked for.
    pub(super) fn begin(self: &Arc<Self>) -> UnderWay {
        self.lock().under_way += 1;
        UnderWay(self.clone())
    }

    /// What came of the last claim that was answered, once nothing is asked for any more; an error where there is no answer
    /// within `patience`.
    pub(super) fn settled(&self, patience: Duration) -> Result<Option<Last>, ()> {
        let waited =
            self.ended.wait_timeout_while(self.lock(), patience, |state| state.under_way > 0);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.under_way == 0 { Ok(state.last) } else { Err(()) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UnderWay {
    /// What the arbiter has said of `term`.
    pub(super) fn is_answered(&self, term: Term, answer: &Answer) {
        let last = match answer {
            Answer::Granted => Last::Won(term),
            Answer::Denied { .. } => Last::Lost,
            Answer::Unreachable { .. } => return,
        };
        self.0.lock().last = Some(last);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.lock().under_way -= 1;
        self.0.ended.notify_all();
    }
}
