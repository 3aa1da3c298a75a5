//! What of a machine goes into a checkpoint besides its memory, and how a machine takes it on.

use std::time::Duration;

use ft_core::Epoch;
use ft_core::pages::PAGE_SIZE;
use io_gate::host::{EffectId, InFlightError, Record, check_in_flight};
use io_gate_host::Sealed;
use kemari_hypervisor::kvm::trial::{Trial, TrialError};
use kemari_hypervisor::kvm::{self, ClockPolicy, VcpuState, VmState};
use kemari_hypervisor::memory::GuestMemory;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::machine::{Answer, DeviceRecord, DevicesRestoreError, Machine, MachineError};

/// A blob of machine state does not fit this machine.
#[derive(Debug, thiserror::Error)]
pub enum StateBlobError {
    /// It is no machine state.
    #[error("the machine state does not decode: {0}; run the same release on both sides")]
    Decode(postcard::Error),
    /// It cannot be encoded.
    #[error("the machine state cannot be encoded: {0}")]
    Encode(postcard::Error),
    /// It is another machine's.
    #[error("the machine state has {found} vCPUs, expected {expected}")]
    Cpus {
        /// What this machine has.
        expected: usize,
        /// What the state has.
        found: usize,
    },
    /// It would be nothing to go on from.
    #[error("a vCPU has stopped for good, and the guest has not been reset yet")]
    DeadVcpu,
    /// Its requests in flight cannot be.
    #[error("the requests in flight of the machine state: {0}")]
    InFlight(InFlightError),
    /// Part of the machine refuses it.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// KVM refuses it, on trial.
    #[error(transparent)]
    Trial(#[from] TrialError),
    /// KVM refuses it.
    #[error(transparent)]
    Kvm(#[from] kemari_hypervisor::kvm::StateError),
}

/// A machine at the end of an epoch, without its memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MachineState {
    epoch: Epoch,
    next_id: EffectId,
    in_flight: Vec<Record>,
    vcpus: Vec<VcpuState>,
    vm: VmState,
    devices: Vec<DeviceRecord>,
    /// When it came to this host, since its boot; none where it was taken.
    #[serde(skip)]
    arrived: Option<Duration>,
}

/// A checkpoint is older than its arrival by no more than this: a primary gives a standby up that takes longer to acknowledge
/// one.
const TRANSIT_MAX: Duration = Duration::from_secs(60);

impl MachineState {
    /// Reads a paused machine whose epoch has just been sealed.
    ///
    /// The vCPUs come first: reading them takes in events that are pending for them (KVM API,
    /// KVM_GET_MP_STATE), which the interrupt controllers must then no longer show.
    ///
    /// # Errors
    /// When KVM or a device cannot be read, or a vCPU cannot go on (P4).
    pub fn capture(machine: &Machine, sealed: Sealed) -> Result<Self, StateBlobError> {
        if machine.vcpus().has_dead() {
            return Err(StateBlobError::DeadVcpu);
        }
        Ok(Self {
            epoch: sealed.epoch,
            next_id: sealed.next_id,
            in_flight: sealed.in_flight,
            vcpus: machine.vcpus().save(machine.plan())?,
            vm: VmState::save(machine.vm())?,
            devices: machine.save_devices()?,
            arrived: None,
        })
    }

    /// The bytes for the wire.
    ///
    /// # Errors
    /// When a part of the state cannot be encoded.
    pub fn encode(&self) -> Result<Vec<u8>, StateBlobError> {
        postcard::to_allocvec(self).map_err(StateBlobError::Encode)
    }

    /// Decodes a blob and checks that it is this machine's.
    ///
    /// # Errors
    /// When it does not decode, or has other parts than `machine`.
    pub fn decode(blob: &[u8], machine: &Machine) -> Result<Self, StateBlobError> {
        let mut state: Self = postcard::from_bytes(blob).map_err(StateBlobError::Decode)?;
        state.arrived = Some(io_gate_host::since_boot());
        let expected = machine.vcpus().len();
        if state.vcpus.len() != expected {
            return Err(StateBlobError::Cpus { expected, found: state.vcpus.len() });
        }
        Ok(state)
    }

    /// Whether the machine can take it on: its devices do, on trial. They are overwritten by the
    /// next trial or by [`restore`](Self::restore). The answer is which part does not fit, and why.
    ///
    /// # Errors
    /// What of it can be told at once.
    pub fn try_on(
        &self,
        machine: &Machine,
    ) -> Result<Answer<Result<(), DevicesRestoreError>>, StateBlobError> {
        check_in_flight(self.epoch, self.next_id, &self.in_flight)
            .map_err(StateBlobError::InFlight)?;
        Ok(machine.restore_devices(&self.devices))
    }

    /// A machine like `machine` to try states on.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn trial(machine: &Machine) -> Result<Trial, StateBlobError> {
        let kvm = kvm::open().map_err(MachineError::from)?;
        Ok(Trial::new(kvm, machine.config().memory, machine.vm().options())?)
    }

    /// Whether this host's KVM takes it, or has taken states like it; see [`Trial::admit`].
    ///
    /// # Errors
    /// What KVM refuses.
    pub fn admit(&self, trial: &mut Trial) -> Result<(), StateBlobError> {
        Ok(trial.admit(&self.vm, &self.vcpus)?)
    }

    /// Whether this host's KVM takes this very state now.
    ///
    /// # Errors
    /// What KVM refuses.
    pub fn attempt(&self, trial: &mut Trial) -> Result<(), StateBlobError> {
        Ok(trial.attempt(&self.vm, &self.vcpus)?)
    }

    /// Puts a machine that has never run into this state; its memory is the checkpoint's already.
    /// Gives the requests in flight to the gate, which holds them.
    ///
    /// # Errors
    /// When KVM or a device refuses.
    pub fn restore(self, machine: &Machine) -> Result<usize, StateBlobError> {
        // The clock goes on from the checkpoint and never steps back; and it goes on by what has passed, by this host's own
        // clock since the checkpoint came, whatever the hosts' wall clocks say (P7).
        let here =
            self.arrived.map_or(Duration::ZERO, |at| io_gate_host::since_boot().saturating_sub(at));
        let at_most = here + TRANSIT_MAX;
        self.vm.restore(machine.vm(), ClockPolicy::CatchUp { at_most })?;
        machine.vcpus().restore(machine.plan(), &self.vcpus)?;
        // The term is won: there is nobody else to go on, however long it takes.
        let restored = machine.restore_devices(&self.devices).wait();
        restored.map_err(MachineError::from)?.map_err(MachineError::from)?;
        let replays = self.in_flight.len();
        machine.gate().adopt(self.epoch, self.next_id, self.in_flight);
        Ok(replays)
    }

    /// A hash of everything that two machines must have alike. The clocks are left out: they go on
    /// while a machine is looked at.
    ///
    /// # Errors
    /// When a part of the state cannot be encoded.
    pub fn hash(&self) -> Result<u64, StateBlobError> {
        let vcpus: Vec<VcpuState> = self.vcpus.iter().map(VcpuState::without_clocks).collect();
        let parts = (self.epoch, self.next_id, &self.in_flight, vcpus, &self.devices);
        let bytes = postcard::to_allocvec(&parts).map_err(StateBlobError::Encode)?;
        Ok(xxh3_64(&bytes))
    }

    /// The hash of what `machine` makes of this state when it takes it on: its devices are written
    /// and read back. The vCPUs are not: writing them makes KVM publish its clock in guest memory,
    /// which is to stay the checkpoint's own until the guest runs here.
    ///
    /// # Errors
    /// When a device refuses, or gives no answer for `patience`.
    pub fn hash_after_restore(
        &self,
        machine: &Machine,
        patience: Duration,
    ) -> Result<u64, StateBlobError> {
        let restored = machine.restored_devices(&self.devices).within(patience);
        let devices = restored.map_err(MachineError::from)?.map_err(MachineError::from)?;
        Self { devices, ..self.clone() }.hash()
    }

    /// The effect that is the first not in it.
    #[must_use]
    pub fn next_id(&self) -> EffectId {
        self.next_id
    }

    /// The epoch that it ends.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
}

/// A hash of all of guest memory.
///
/// # Errors
/// When memory cannot be read.
pub fn hash_memory(memory: &GuestMemory) -> Result<u64, vm_memory::GuestMemoryError> {
    hash_memory_telling(memory, || {})
}

/// As [`hash_memory`]; `goes_on` is called again and again meanwhile.
pub(super) fn hash_memory_telling(
    memory: &GuestMemory,
    goes_on: impl Fn(),
) -> Result<u64, vm_memory::GuestMemoryError> {
    let mut hash = Xxh3::new();
    let mut chunk = vec![0; 64 * PAGE_SIZE];
    for region in memory.iter() {
        let mut offset = 0;
        while offset < region.len() {
            let len = chunk.len().min((region.len() - offset) as usize);
            region.read_slice(&mut chunk[..len], MemoryRegionAddress(offset))?;
            hash.update(&chunk[..len]);
            goes_on();
            offset += len as u64;
        }
    }
    Ok(hash.digest())
}
