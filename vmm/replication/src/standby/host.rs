//! The interface by which a standby builds a machine like the primary's.

use std::sync::Arc;

use ft_core::handshake::MachineLayout;
use io_gate::host::CommitAuthority;
use kemari_machine::Machine;

/// Why this side cannot build a machine like the primary's.
pub type HostError = Box<dyn std::error::Error + Send + Sync>;

/// Builds machines of the primary's layout with this side's own backends.
pub trait MachineFactory: Send {
    /// Builds a machine that has not run, and the authority over its gate.
    ///
    /// # Errors
    /// Why the machine cannot be built here, and what to change.
    fn build(&self, layout: &MachineLayout) -> Result<(Arc<Machine>, CommitAuthority), HostError>;
}
