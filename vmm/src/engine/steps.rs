//! Steps of a session at which a test can hold the thread that has come to it, so that an order of events which is rare
//! otherwise can be had at will. The command line has no way to them.

use std::sync::Arc;

use ft_core::LinkId;

use super::MachineState;

/// Where a thread of a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The sender has made KVM log the guest's writes, and has not yet looked at the log.
    LogStarted,
    /// The sender has sent a round of the pre-copy.
    RoundSent,
    /// An acknowledgement has come, and what it covers is about to be released; with the engine's core locked.
    Releasing,
    /// The sender does nothing more.
    SenderEnded,
}

type Hook = Arc<dyn Fn(LinkId, Step) + Send + Sync>;
type StateHook = Arc<dyn Fn(&mut MachineState) + Send + Sync>;

/// What a test does at the steps; by default nothing.
#[derive(Clone, Default)]
pub struct Steps {
    /// Called by the thread that has come to a step; it goes on when this returns.
    pub at: Option<Hook>,
    /// Changes a checkpoint's state before it is encoded: to one that the guest cannot be brought into at will.
    pub state: Option<StateHook>,
}

impl Steps {
    pub(super) fn reached(&self, link: LinkId, step: Step) {
        if let Some(at) = &self.at {
            at(link, step);
        }
    }

    pub(super) fn change(&self, state: &mut MachineState) {
        if let Some(change) = &self.state {
            change(state);
        }
    }
}

impl std::fmt::Debug for Steps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Steps").finish_non_exhaustive()
    }
}
