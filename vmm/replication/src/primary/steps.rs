//! Steps of a session at which a test can stop the thread that reaches them, to force a rare order
//! of events. The command line cannot set them.

use std::sync::Arc;

use ft_core::LinkId;

use crate::session::MachineState;

/// A point that a thread of a session reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The sender has started KVM's dirty log and has not read it yet.
    LogStarted,
    /// The sender has sent one round of the pre-copy.
    RoundSent,
    /// An acknowledgement has arrived and its effects are about to be released. The engine's state
    /// is locked.
    Releasing,
    /// The sender has ended.
    SenderEnded,
}

type Hook = Arc<dyn Fn(LinkId, Step) + Send + Sync>;
type StateHook = Arc<dyn Fn(&mut MachineState) + Send + Sync>;

/// A test's hooks. By default there are none.
#[derive(Clone, Default)]
pub struct StepHooks {
    /// Called by the thread that reaches a step. That thread continues when the call returns.
    pub at: Option<Hook>,
    /// Changes a checkpoint's state before it is encoded, for a state that a guest can hardly be
    /// brought into.
    pub state: Option<StateHook>,
}

impl StepHooks {
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

impl std::fmt::Debug for StepHooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StepHooks").finish_non_exhaustive()
    }
}
