//! Builds machines like the primary's.

use std::sync::{Arc, Once};

use ft_core::handshake::MachineLayout;
use io_gate::host::{CommitAuthority, new_gate};
use io_gate_host::{Fence, Observer};
use kemari_hypervisor::memory::{MemoryError, check_limits, scarce};
use kemari_machine::config::MachineConfig;
use kemari_machine::{Machine, MachineError};

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

/// Number of times that a standby maps a guest's memory: for the guest, and for the machine on
/// which states are tried.
const COPIES: u64 = 2;

/// Builds machines with the resources of this host.
pub struct HostFactory {
    /// This side's devices. The primary decides the size of the memory and the number of vCPUs.
    template: MachineConfig,
    fence: Arc<dyn Fence>,
    observer: Option<Arc<dyn Observer>>,
    /// Whether the warning about this process's memory limit was logged.
    warned: Once,
}

impl HostFactory {
    /// A factory for the devices of `template`.
    #[must_use]
    pub fn new(
        template: MachineConfig,
        fence: Arc<dyn Fence>,
        observer: Option<Arc<dyn Observer>>,
    ) -> Self {
        Self { template, fence, observer, warned: Once::new() }
    }
}

impl MachineFactory for HostFactory {
    fn build(&self, layout: &MachineLayout) -> Result<(Arc<Machine>, CommitAuthority), HostError> {
        let memory = layout.memory_size();
        // P4: the machine on which states are tried is as large as the guest, and is created later.
        check_limits(memory, COPIES).map_err(MemoryError::from).map_err(MachineError::from)?;
        if let Some(scarce) = scarce(memory, COPIES) {
            // Log it once: a primary may join repeatedly.
            self.warned.call_once(|| log::warn!("{scarce}"));
        }
        let (ledger, authority) = new_gate();
        let config = MachineConfig { memory, cpus: layout.cpus, ..self.template.clone() };
        let (fence, observer) = (self.fence.clone(), self.observer.clone());
        let machine = Machine::build_audited(config, ledger, fence, observer)?;
        machine.check_backends()?;
        Ok((machine, authority))
    }
}
