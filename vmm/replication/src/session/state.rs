//! The content of a checkpoint besides memory: capture, wire format, trial and restore.

use std::time::Duration;

use ft_core::Epoch;
use ft_core::pages::PAGE_SIZE;
use io_gate::host::{EffectId, InFlightError, OwnPorts, Record, check_in_flight};
use io_gate_host::Sealed;
use kemari_hypervisor::kvm::trial::{Trial, TrialError};
use kemari_hypervisor::kvm::{self, ClockPolicy, VcpuState, VmState};
use kemari_hypervisor::memory::GuestMemory;
use kemari_machine::{DeviceRecord, DevicesRestoreError, Machine, MachineError, PendingCommand};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Why a state blob cannot be used on this machine.
#[derive(Debug, thiserror::Error)]
pub enum StateBlobError {
    /// The bytes are not an encoded machine state.
    #[error("the machine state does not decode: {0}; run the same release on both sides")]
    Decode(postcard::Error),
    /// The state cannot be encoded.
    #[error("the machine state cannot be encoded: {0}")]
    Encode(postcard::Error),
    /// The state has another number of vCPUs.
    #[error("the machine state has {found} vCPUs, expected {expected}")]
    Cpus {
        /// vCPUs of this machine.
        expected: usize,
        /// vCPUs of the state.
        found: usize,
    },
    /// The guest cannot continue from the state: a vCPU has stopped for good.
    #[error("a vCPU has stopped permanently, and the guest has not been reset yet")]
    DeadVcpu,
    /// The requests in flight are not consistent with the epoch and the next effect id.
    #[error("the requests in flight of the machine state: {0}")]
    InFlight(InFlightError),
    /// A part of the machine refuses the state.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// KVM refuses the state on trial.
    #[error(transparent)]
    Trial(#[from] TrialError),
    /// KVM refuses the state.
    #[error(transparent)]
    Kvm(#[from] kemari_hypervisor::kvm::StateError),
}

/// The state of a machine at the end of an epoch, without its memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MachineState {
    epoch: Epoch,
    next_id: EffectId,
    in_flight: Vec<Record>,
    vcpus: Vec<VcpuState>,
    vm: VmState,
    devices: Vec<DeviceRecord>,
    /// When the state arrived at this host, as time since its boot; `None` on the host that
    /// captured it.
    #[serde(skip)]
    arrived: Option<Duration>,
}

/// Upper bound of a checkpoint's age at its arrival: a primary drops a standby that takes longer to
/// acknowledge.
const TRANSIT_MAX: Duration = Duration::from_secs(60);

impl MachineState {
    /// Reads a paused machine whose epoch has just been sealed.
    ///
    /// Reads the vCPUs first: that read applies their pending events (KVM API, KVM_GET_MP_STATE),
    /// which must then no longer be pending in the saved interrupt controllers.
    ///
    /// # Errors
    /// When KVM or a device cannot be read, or a vCPU has stopped for good (P4).
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
            devices: machine.save_devices(),
            arrived: None,
        })
    }

    /// Encodes the state for the wire.
    ///
    /// # Errors
    /// When a part of the state cannot be encoded.
    pub fn encode(&self) -> Result<Vec<u8>, StateBlobError> {
        postcard::to_allocvec(self).map_err(StateBlobError::Encode)
    }

    /// Decodes a blob and checks that it fits this machine.
    ///
    /// # Errors
    /// When the blob does not decode, or its number of vCPUs is not that of `machine`.
    pub fn decode(blob: &[u8], machine: &Machine) -> Result<Self, StateBlobError> {
        let mut state: Self = postcard::from_bytes(blob).map_err(StateBlobError::Decode)?;
        state.arrived = Some(io_gate_host::since_boot());
        let expected = machine.vcpus().len();
        if state.vcpus.len() != expected {
            return Err(StateBlobError::Cpus { expected, found: state.vcpus.len() });
        }
        Ok(state)
    }

    /// Tries the devices' state on the machine's devices, and returns which part does not fit, and
    /// why. The next trial or [`restore`](Self::restore) overwrites the devices.
    ///
    /// # Errors
    /// When the requests in flight do not fit. This is checked before the devices answer.
    pub fn try_on(
        &self,
        machine: &Machine,
    ) -> Result<PendingCommand<Result<(), DevicesRestoreError>>, StateBlobError> {
        check_in_flight(self.epoch, self.next_id, &self.in_flight, &OwnPorts::none())
            .map_err(StateBlobError::InFlight)?;
        Ok(machine.restore_devices(&self.devices))
    }

    /// Creates a virtual machine like `machine`, on which states are tried.
    ///
    /// # Errors
    /// When KVM cannot create it.
    pub fn trial(machine: &Machine) -> Result<Trial, StateBlobError> {
        let kvm = kvm::open().map_err(MachineError::from)?;
        Ok(Trial::new(kvm, machine.config().memory, machine.vm().options())?)
    }

    /// Checks that this host's KVM accepts this state, or has accepted states like it. See
    /// [`Trial::admit`].
    ///
    /// # Errors
    /// What KVM refuses.
    pub fn admit(&self, trial: &mut Trial) -> Result<(), StateBlobError> {
        Ok(trial.admit(&self.vm, &self.vcpus)?)
    }

    /// Checks that this host's KVM accepts exactly this state now.
    ///
    /// # Errors
    /// What KVM refuses.
    pub fn attempt(&self, trial: &mut Trial) -> Result<(), StateBlobError> {
        Ok(trial.attempt(&self.vm, &self.vcpus)?)
    }

    /// Restores this state in a machine that has never run. Its memory already holds the
    /// checkpoint. Gives the requests in flight to the gate, which holds them, and returns their
    /// number.
    ///
    /// # Errors
    /// When KVM or a device refuses.
    pub fn restore(self, machine: &Machine) -> Result<usize, StateBlobError> {
        // P7: the guest's clock continues from the checkpoint and never steps back. It advances by
        // the time since the checkpoint arrived, measured with this host's own clock, and so does
        // not depend on the hosts' wall clocks.
        let here =
            self.arrived.map_or(Duration::ZERO, |at| io_gate_host::since_boot().saturating_sub(at));
        let at_most = here + TRANSIT_MAX;
        self.vm.restore(machine.vm(), ClockPolicy::CatchUp { at_most })?;
        machine.vcpus().restore(machine.plan(), &self.vcpus)?;
        // The term is won and no other machine can continue the guest: wait without a limit.
        let restored = machine.restore_devices(&self.devices).wait();
        restored.map_err(MachineError::from)?.map_err(MachineError::from)?;
        let replays = self.in_flight.len();
        machine.gate().adopt(self.epoch, self.next_id, self.in_flight);
        Ok(replays)
    }

    /// Hashes everything that must be equal on both machines. The clocks are left out: they advance
    /// while the machine is read.
    ///
    /// # Errors
    /// When a part of the state cannot be encoded.
    pub fn hash(&self) -> Result<u64, StateBlobError> {
        let vcpus: Vec<VcpuState> = self.vcpus.iter().map(VcpuState::without_clocks).collect();
        let parts = (self.epoch, self.next_id, &self.in_flight, vcpus, &self.devices);
        let bytes = postcard::to_allocvec(&parts).map_err(StateBlobError::Encode)?;
        Ok(xxh3_64(&bytes))
    }

    /// Hashes the state of `machine` after a restore of this state: the devices are written and
    /// read back. The vCPUs are not written: KVM would publish its clock in guest memory, which
    /// must stay that of the checkpoint until the guest runs here.
    ///
    /// # Errors
    /// When a device refuses, or does not answer within `patience`.
    pub fn hash_after_restore(
        &self,
        machine: &Machine,
        patience: Duration,
    ) -> Result<u64, StateBlobError> {
        let restored = machine.restored_devices(&self.devices).within(patience);
        let devices = restored.map_err(MachineError::from)?.map_err(MachineError::from)?;
        Self { devices, ..self.clone() }.hash()
    }

    /// The id of the first effect that is not in this checkpoint.
    #[must_use]
    pub fn next_id(&self) -> EffectId {
        self.next_id
    }

    /// The epoch that this checkpoint ends.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
}

/// Hashes all of guest memory.
///
/// # Errors
/// When memory cannot be read.
pub fn hash_memory(memory: &GuestMemory) -> Result<u64, vm_memory::GuestMemoryError> {
    hash_memory_telling(memory, || {})
}

/// As [`hash_memory`]. Calls `goes_on` after each chunk.
pub(crate) fn hash_memory_telling(
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
