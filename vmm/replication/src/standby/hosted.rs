//! The machine that this side holds for a primary.

use std::sync::Arc;

use ft_core::Term;
use ft_core::handshake::BootSource;
use io_gate::host::CommitAuthority;
use kemari_hypervisor::kvm::trial::Trial;
use kemari_machine::Machine;

use super::SessionId;
use crate::session::{MachineState, StateBlobError};

/// See the module.
pub(super) struct Hosted {
    pub(super) session: SessionId,
    pub(super) machine: Arc<Machine>,
    pub(super) authority: CommitAuthority,
    /// The primary's term, and its name at the arbiter.
    pub(super) primary: (Term, String),
    /// The primary's boot files, if it has any.
    pub(super) boot: Option<BootSource>,
    /// The state of the last checkpoint that was tried, and of the last one that was applied.
    pub(super) tried: Option<MachineState>,
    pub(super) applied: Option<MachineState>,
    /// The virtual machine on which states are tried, created at a session's first checkpoint.
    pub(super) trial: Option<Trial>,
}

impl Hosted {
    pub(super) fn trial(&mut self) -> Result<&mut Trial, StateBlobError> {
        Self::trial_of(&self.machine, &mut self.trial)
    }

    pub(super) fn trial_of<'t>(
        machine: &Machine,
        trial: &'t mut Option<Trial>,
    ) -> Result<&'t mut Trial, StateBlobError> {
        match trial {
            Some(trial) => Ok(trial),
            none => Ok(none.insert(MachineState::trial(machine)?)),
        }
    }
}
