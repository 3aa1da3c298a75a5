//! Builds a machine from its configuration, and attaches its backends.

use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock};

use io_gate::host::Ledger;
use io_gate_host::backend::disk::DiskError;
use io_gate_host::backend::memory::{MemoryFileError, memory_file};
use io_gate_host::disk_use::disk_fence::FenceClaim;
use io_gate_host::{Fence, GateHost, GateOptions, Observer};
use kemari_confine::seccomp::{self, Role};
use kemari_hypervisor::kvm::state::SavePlan;
use kemari_hypervisor::kvm::{
    self, CompatInfo, OpenError, StateError, VcpuError, VcpuSet, Vm, VmError, VmOptions, VmState,
};
use kemari_hypervisor::memory::{self, MemoryError, MemoryOptions};
use vmm_sys_util::eventfd::EventFd;

use super::subscribers::PowerEvents;
use super::{Machine, PowerOn};
use crate::boot::BootError;
use crate::bus::Bus;
use crate::config::{ConfigError, MachineConfig};
use crate::device_error::{DeviceSetupError, ShareDiskError};
use crate::device_set::{AttachOptions, DeviceSet, DevicesRestoreError};
use crate::device_thread::{DeviceThread, LoopError, LoopHandle};
use crate::disks;
use crate::events::Events;

/// Why a machine cannot be built, booted or restored.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The configuration is not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// KVM cannot be used.
    #[error(transparent)]
    Kvm(#[from] OpenError),
    /// KVM refuses this machine.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// Guest memory cannot be allocated.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The file for guest memory cannot be used.
    #[error(transparent)]
    MemoryFile(#[from] MemoryFileError),
    /// A device or its backend cannot be set up.
    #[error(transparent)]
    Devices(#[from] DeviceSetupError),
    /// The devices refuse their saved state.
    #[error(transparent)]
    RestoreDevices(#[from] DevicesRestoreError),
    /// The vCPUs cannot be set up.
    #[error(transparent)]
    Vcpus(#[from] VcpuError),
    /// KVM's part of the state cannot be read or restored.
    #[error(transparent)]
    State(#[from] StateError),
    /// The guest cannot be booted.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// No kernel is given.
    #[error(
        "no kernel to boot: give --kernel FILE (only a standby needs none: its primary sends the kernel)"
    )]
    NoKernel,
    /// A device has a request in progress that does not end.
    #[error(
        "slot {slot}: the device's backend has not finished a request that reads guest memory: look for a disk that \
        does not answer"
    )]
    Busy {
        /// The device's slot.
        slot: u16,
    },
    /// Guest memory cannot be cleared for a reset.
    #[error("cannot write guest memory: {0}")]
    Access(#[from] vm_memory::GuestMemoryError),
    /// The device thread has ended or is stuck.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// The process is out of a system resource.
    #[error("cannot set up the machine: {0}")]
    System(#[from] io::Error),
}

impl MachineError {
    /// Whether the operator must change the command line or a file that it names (exit code 2).
    /// `false`: an operation failed.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Config(_)
            | Self::Kvm(_)
            | Self::Memory(_)
            | Self::MemoryFile(_)
            | Self::Boot(_)
            | Self::NoKernel => true,
            Self::Vm(error) => matches!(error, VmError::Cpus { .. }),
            Self::Devices(error) => {
                !matches!(error, DeviceSetupError::System(_) | DeviceSetupError::Overlap(_))
            }
            _ => false,
        }
    }
}

impl Machine {
    /// Builds a machine on a gate's ledger. Its devices have no backends, no kernel is loaded, and
    /// its vCPUs are parked. The only thing that it reads from backends is the sizes of disks.
    ///
    /// # Errors
    /// See [`MachineError`]. A machine that cannot be built leaves nothing behind.
    pub fn build(
        config: MachineConfig,
        ledger: Ledger,
        fence: Arc<dyn Fence>,
    ) -> Result<Arc<Self>, MachineError> {
        Self::build_audited(config, ledger, fence, None)
    }

    /// Does what [`build`](Self::build) does; `observer` sees the result of every effect.
    ///
    /// # Errors
    /// Those of [`build`](Self::build).
    pub fn build_audited(
        config: MachineConfig,
        ledger: Ledger,
        fence: Arc<dyn Fence>,
        observer: Option<Arc<dyn Observer>>,
    ) -> Result<Arc<Self>, MachineError> {
        config.check()?;
        let kvm = kvm::open()?;
        // Use huge pages: they cause fewer faults in the guest and make copies at checkpoints
        // cheaper.
        let options = MemoryOptions { size: config.memory, huge_pages: true };
        let ram = match &config.memory_file {
            None => memory::create(options)?,
            Some(path) => memory::create_in_file(options, |bytes| {
                memory_file(path, bytes).map_err(MachineError::from)
            })?,
        };
        // Stock kernels need the PIT to calibrate their clocks.
        let vm = Arc::new(Vm::new(&kvm, ram.clone(), VmOptions { cpus: config.cpus, pit: true })?);
        vm.mask_legacy_interrupts()?;
        let ram = Arc::new(ram);
        let lane_start = Arc::new(|| seccomp::enter(Role::Lane, &[]));
        let gate = GateHost::new(
            ledger,
            ram.clone(),
            fence,
            GateOptions { lane_start, observer, ..GateOptions::default() },
        )?;
        let events = Arc::new(Events::new()?);
        let engine_event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let device_loop = LoopHandle::new()?;
        let mut wakes = gate.wakes();
        wakes.extend([events.event().as_raw_fd(), device_loop.wake_fd(), engine_event.as_raw_fd()]);
        // P5: confine the thread before there is a device, so that no device code runs without this
        // filter.
        let confined = wakes.clone();
        let device_thread =
            DeviceThread::start(device_loop, move || seccomp::enter(Role::Device, &confined))?;
        let devices = Arc::new(DeviceSet::new(
            &config,
            &vm,
            gate.clone(),
            events.clone(),
            device_thread.handle(),
        )?);
        let fds = vm.create_vcpus()?;
        let first = fds.first().ok_or(VcpuError::NoSuchVcpu { vcpu: 0, count: 0 })?;
        let plan = Arc::new(SavePlan::new(&kvm, &vm, first)?);
        let facts = CompatInfo::new(&kvm, &vm, first, &plan);
        let bus = Arc::new(Bus::new(devices.io_manager()?, events.clone(), gate.clone()));
        let vcpus = VcpuSet::spawn(fds, bus)?;
        let power_on = PowerOn { vcpus: vcpus.save(&plan)?, vm: VmState::save(&vm)? };
        let machine = Arc::new(Self {
            config,
            memory: ram,
            gate,
            devices,
            events,
            plan,
            facts,
            power_on,
            device_thread,
            started: AtomicBool::new(false),
            runs: AtomicBool::new(false),
            button_pressed: Arc::default(),
            work: AtomicU64::new(0),
            fence_hook: OnceLock::new(),
            wakes,
            engine_event,
            boot: Mutex::new(None),
            vcpus,
            vm,
        });
        let power_events = PowerEvents::new(&machine);
        machine.device_loop().post(move |context| {
            context.add(Box::new(power_events));
        });
        Ok(machine)
    }

    /// Checks whether [`attach_backends`](Self::attach_backends) would succeed. A standby calls it
    /// long before a takeover.
    ///
    /// # Errors
    /// When a backend cannot be opened.
    pub fn check_backends(&self) -> Result<(), MachineError> {
        Ok(self.devices.check_backends(&self.config)?)
    }

    /// Opens the backends for a takeover and keeps them open, so that an error shows before a term
    /// is claimed (P9). Attaches and releases nothing.
    ///
    /// # Errors
    /// When a backend cannot be opened.
    pub fn prepare_takeover(&self) -> Result<(), MachineError> {
        Ok(self.devices.prepare(&self.config, AttachOptions::TAKEOVER)?)
    }

    /// Whether the backends are open.
    #[must_use]
    pub fn is_prepared(&self) -> bool {
        self.devices.is_prepared()
    }

    /// Attaches the [prepared](Self::prepare_takeover) backends, or opens them now: all or none. A
    /// standby calls it at a takeover.
    ///
    /// # Errors
    /// When a backend cannot be opened.
    pub fn attach_backends(&self, options: AttachOptions) -> Result<(), MachineError> {
        Ok(self.devices.attach(&self.config, options)?)
    }

    /// Prepares the disks for sharing with a standby when protection begins, also if the machine
    /// started without protection (P3). Waits for the disks' lanes.
    ///
    /// # Errors
    /// When a disk cannot be shared with a standby.
    pub fn share_disks(&self) -> Result<(), ShareDiskError> {
        self.devices.share_disks(&self.config)
    }

    /// Writes again into the fence records that this machine holds the disks: a standby compares
    /// its own view with them (P2).
    ///
    /// # Errors
    /// When a record cannot be written, or names another holder.
    pub fn renew_fence_records(&self) -> Result<(), DiskError> {
        self.gate.renew_records()
    }

    /// Opens and locks the disks of a machine that is about to start and has an arbiter. Call it
    /// first: a start that finds a disk in use has then taken nothing. With `seize`, the error does
    /// not advise to seize.
    ///
    /// # Errors
    /// When a disk cannot be opened, or another process has it locked.
    pub fn reserve_disks(&self, seize: bool) -> Result<(), MachineError> {
        Ok(self.devices.reserve_disks(&self.config, seize)?)
    }

    /// The newest claim in the fence records of the disks, and the path of that record.
    ///
    /// # Errors
    /// When a record cannot be read, or another machine holds a disk.
    pub fn disk_claim(&self) -> Result<Option<(FenceClaim, PathBuf)>, MachineError> {
        Ok(disks::newest_claim(&self.config)?)
    }

    /// Seizes the disks from their recorded holder, which is dead according to the operator.
    ///
    /// # Errors
    /// When another process has a disk open, or a record cannot be written.
    pub fn seize_disks(&self) -> Result<(), MachineError> {
        Ok(disks::seize(&self.config)?)
    }
}
