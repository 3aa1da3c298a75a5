//! The machine itself: its parts, its description, and its devices' part of a checkpoint. [`build`]
//! builds it; [`lifecycle`] starts, resets and ends it.

mod build;
mod lifecycle;
mod subscribers;

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use io_gate::Identity;
use io_gate_host::GateHost;
use kemari_hypervisor::kvm::state::SavePlan;
use kemari_hypervisor::kvm::{CompatInfo, VcpuSet, VcpuState, Vm, VmState};
use kemari_hypervisor::layout;
use kemari_hypervisor::memory::GuestMemory;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::boot::Boot;
use crate::config::MachineConfig;
use crate::config::slots::PCI_SLOT;
use crate::description::{DeviceDescription, MachineDescription};
use crate::device_set::{DeviceRecord, DeviceSet, DevicesRestoreError};
use crate::device_thread::{DeviceThread, LoopHandle, PendingCommand};
use crate::events::Events;

pub use build::MachineError;

/// A machine, shared by the threads around it. A method that must run on the device thread says so.
pub struct Machine {
    config: MachineConfig,
    memory: Arc<GuestMemory>,
    gate: Arc<GateHost>,
    devices: Arc<DeviceSet>,
    events: Arc<Events>,
    plan: Arc<SavePlan>,
    facts: CompatInfo,
    power_on: PowerOn,
    device_thread: DeviceThread,
    started: AtomicBool,
    runs: AtomicBool,
    /// Whether a press of the power button waits for the device thread.
    button_pressed: Arc<AtomicBool>,
    /// Counts the device thread's progress in long work.
    work: AtomicU64,
    fence_hook: OnceLock<FenceHook>,
    /// The event counters by which the machine's threads wake each other.
    wakes: Vec<RawFd>,
    /// The engine's event: the epoch must end.
    engine_event: EventFd,
    /// The boot files, opened before the device thread gives up the right to open them. The lock is
    /// held only to read or to set the field, never while a file is read.
    boot: Mutex<Option<Arc<Boot>>>,
    // The threads of these fields end when they are dropped, so they come before the machine that
    // the threads use.
    vcpus: VcpuSet,
    vm: Arc<Vm>,
}

type FenceHook = Box<dyn Fn() + Send + Sync>;

/// KVM's part of the machine at power-on, which a reset restores.
struct PowerOn {
    vcpus: Vec<VcpuState>,
    vm: VmState,
}

impl Machine {
    /// The machine's configuration.
    #[must_use]
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// Guest memory.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// The gate.
    #[must_use]
    pub fn gate(&self) -> &Arc<GateHost> {
        &self.gate
    }

    /// The vCPUs.
    #[must_use]
    pub fn vcpus(&self) -> &VcpuSet {
        &self.vcpus
    }

    /// KVM's virtual machine.
    #[must_use]
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// The parts of a vCPU's state that a save reads on this host.
    #[must_use]
    pub fn plan(&self) -> &Arc<SavePlan> {
        &self.plan
    }

    /// The devices.
    #[must_use]
    pub fn devices(&self) -> &Arc<DeviceSet> {
        &self.devices
    }

    /// The events of the whole machine.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// The event counters by which the machine's threads wake each other. Threads that run device
    /// code may write to no other descriptor.
    #[must_use]
    pub fn wakes(&self) -> Vec<RawFd> {
        self.wakes.clone()
    }

    /// The counter by which the engine makes the device thread end an epoch. The machine owns it,
    /// because it must exist before the device thread gives up its rights.
    #[must_use]
    pub fn engine_event(&self) -> &EventFd {
        &self.engine_event
    }

    /// Reports progress. The device thread calls it during long work, to show that it is not stuck.
    pub fn note_work(&self) {
        self.work.fetch_add(1, Ordering::Relaxed);
    }

    /// The number of calls of [`note_work`](Self::note_work).
    #[must_use]
    pub fn work_done(&self) -> u64 {
        self.work.load(Ordering::Relaxed)
    }

    /// The handle for commands to the device thread.
    #[must_use]
    pub fn device_loop(&self) -> &LoopHandle {
        self.device_thread.handle()
    }

    /// The machine as a guest sees it. Another machine can restore its state only if the
    /// descriptions are equal.
    #[must_use]
    pub fn description(&self) -> MachineDescription {
        let memory = self.memory.iter();
        let virtio = self.devices.virtio().iter().map(|device| {
            let slot = device.slot();
            describe(slot, device.identity(), device.features(), self.devices.detail(slot))
        });
        let registers = self.devices.registers().iter().map(|device| {
            let slot = device.slot();
            describe(slot, device.identity(), 0, self.devices.detail(slot))
        });
        let pci = self.devices.pci().map(|pci| pci.describe(PCI_SLOT));
        MachineDescription {
            memory: memory.map(|region| (region.start_addr().raw_value(), region.len())).collect(),
            cpus: self.vcpus.len() as u32,
            page_size: layout::PAGE_SIZE as u32,
            devices: virtio.chain(registers).chain(pci).collect(),
        }
    }

    /// Properties of the host that a guest depends on, each with a name for people.
    #[must_use]
    pub fn facts(&self) -> Vec<(String, String)> {
        let info = &self.facts;
        let mut facts = vec![
            ("processor vendor".to_owned(), info.vendor.clone()),
            ("processor signature".to_owned(), format!("{:#010x}", info.signature)),
            ("size of the XSAVE area".to_owned(), info.xsave_size.to_string()),
            ("KVM capabilities".to_owned(), info.capabilities.join(" ")),
            (
                "saved MSRs".to_owned(),
                format!("{} with digest {:016x}", info.msr_count, info.msr_digest),
            ),
            ("MTRRs and machine check banks".to_owned(), info.constants_summary()),
            ("8254 timer".to_owned(), self.vm.options().pit.to_string()),
            ("TSC".to_owned(), tsc_fact(info)),
        ];
        facts.extend(info.features.iter().map(|word| {
            let name = format!(
                "CPUID leaf {:#x}.{} register {}",
                word.function, word.index, word.register
            );
            (name, format!("{:#010x}", word.value))
        }));
        facts
    }

    /// The host as a guest sees it, for a finer comparison than [`facts`](Self::facts).
    #[must_use]
    pub fn compat(&self) -> &CompatInfo {
        &self.facts
    }

    /// Saves the state of all devices. Call it on the device thread with the vCPUs paused.
    #[must_use]
    pub fn save_devices(&self) -> Vec<DeviceRecord> {
        self.devices.save()
    }

    /// Restores the state of all devices of a machine that has not started or whose vCPUs are
    /// paused. P5: runs on the device thread, because only threads without rights to the outside
    /// run device code.
    ///
    /// # Errors
    /// In the answer, when the state belongs to other devices or another release, or is not
    /// possible.
    pub fn restore_devices(
        &self,
        records: &[DeviceRecord],
    ) -> PendingCommand<Result<(), DevicesRestoreError>> {
        let (devices, records) = (self.devices.clone(), records.to_vec());
        self.device_loop().ask(move |_| devices.restore(&records))
    }

    /// Restores the state as [`restore_devices`](Self::restore_devices) does, and returns the state
    /// that the devices then save.
    ///
    /// # Errors
    /// In the answer, as for [`restore_devices`](Self::restore_devices).
    pub fn restored_devices(
        &self,
        records: &[DeviceRecord],
    ) -> PendingCommand<Result<Vec<DeviceRecord>, DevicesRestoreError>> {
        let (devices, records) = (self.devices.clone(), records.to_vec());
        self.device_loop().ask(move |_| devices.restore(&records).map(|()| devices.save()))
    }
}

fn describe(slot: u16, identity: Identity, features: u64, detail: &str) -> DeviceDescription {
    DeviceDescription {
        slot,
        kind: identity.kind.to_owned(),
        state_version: identity.state_version.into(),
        features,
        detail: detail.to_owned(),
    }
}

/// The TSC frequency as text to compare. Not compared if KVM can scale it; otherwise rounded to 5
/// MHz, because every boot measures it anew.
fn tsc_fact(info: &CompatInfo) -> String {
    const STEP_KHZ: u32 = 5000;
    match info.tsc_khz {
        Some(_) if info.tsc_control => "any frequency, by scaling".to_owned(),
        Some(khz) => format!("about {} MHz", (khz + STEP_KHZ / 2) / STEP_KHZ * STEP_KHZ / 1000),
        None => "of unknown frequency".to_owned(),
    }
}
