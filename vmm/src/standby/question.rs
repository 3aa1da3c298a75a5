//! A question to the arbiter: it is asked some time after the standby wants it to be, and withdrawn until then (P2, P7).
//!
//! A term that is won for a standby that ends meanwhile, or holds nothing any more, takes the right from a primary that may
//! live, and the guest is nowhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ft_core::Term;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Question {
    term: Term,
    /// Whether it has been asked, or withdrawn: what comes first holds.
    settled: Arc<AtomicBool>,
}

impl Question {
    /// One that is not asked yet.
    pub(super) fn new(term: Term) -> Self {
        Self { term, settled: Arc::default() }
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
}
