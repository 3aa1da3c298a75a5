//! One virtual machine: memory, vCPUs, devices and the gate, put together, started, paused, saved, reset and ended.
//!
//! Threads and locks: `docs/threads.md`.

mod build;
mod bus;
pub mod catalog;
mod device_error;
mod device_set;
mod device_thread;
pub(crate) mod disks;
mod events;
pub mod gated;
pub(crate) mod interface;
mod interrupt;
mod lifecycle;
mod pci;
mod register_port;
pub(crate) mod serving;
pub mod signals;
pub(crate) mod storage;
mod virtio_mmio;

pub use build::MachineError;
pub use device_error::{DeviceSetupError, ShareDiskError};
pub use device_set::{AttachOptions, DeviceRecord, DeviceSet, DeviceState, DevicesRestoreError};
pub use device_thread::{Answer, LoopContext, LoopError, LoopHandle, Subscriber};
pub use events::{Ended, Events, MachineEvent};
pub use pci::{Description, FunctionState, PciBus, PciError, PciState};
pub use register_port::RegisterPort;
pub use virtio_mmio::{Registers, TransportError, TransportState, VirtioMmio};

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use ft_core::handshake::{DeviceLayout, MachineLayout, MemoryRegion};
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
use device_thread::DeviceThread;

/// A machine. Shared by the threads around it; what must happen on the device thread says so.
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
    /// The power button was pressed, and the device thread has not come to it yet.
    button_pressed: Arc<AtomicBool>,
    /// Counts what the device thread does where one thing takes long.
    work: AtomicU64,
    fence_hook: OnceLock<FenceHook>,
    /// The counters by which its threads wake each other.
    wakes: Vec<RawFd>,
    /// The engine's: an epoch is to end.
    engine_event: EventFd,
    /// What to boot, opened before the device thread gives up the right to. Held to look and to put only, never while a
    /// file is read.
    boot: Mutex<Option<Arc<Boot>>>,
    // The threads end before the machine they run on.
    vcpus: VcpuSet,
    vm: Arc<Vm>,
}

type FenceHook = Box<dyn Fn() + Send + Sync>;

/// What KVM's part of the machine was after it was made: what a reset goes back to.
struct PowerOn {
    vcpus: Vec<VcpuState>,
    vm: VmState,
}

impl Machine {
    /// How it was asked for.
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

    /// KVM's machine.
    #[must_use]
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// What of a vCPU is saved on this host.
    #[must_use]
    pub fn plan(&self) -> &Arc<SavePlan> {
        &self.plan
    }

    /// The devices.
    #[must_use]
    pub fn devices(&self) -> &Arc<DeviceSet> {
        &self.devices
    }

    /// What happens to the machine as a whole.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// The counters by which the machine's threads wake each other: all that those which run
    /// devices may write to.
    #[must_use]
    pub fn wakes(&self) -> Vec<RawFd> {
        self.wakes.clone()
    }

    /// The counter by which the engine has the device thread end an epoch. The machine's, as it is made before the device
    /// thread gives up its rights.
    pub(crate) fn engine_event(&self) -> &EventFd {
        &self.engine_event
    }

    /// Counted up by the device thread in the middle of what takes long: it is not stuck.
    pub fn note_work(&self) {
        self.work.fetch_add(1, Ordering::Relaxed);
    }

    /// How far that is.
    #[must_use]
    pub fn work_done(&self) -> u64 {
        self.work.load(Ordering::Relaxed)
    }

    /// The way to the device thread.
    #[must_use]
    pub fn device_loop(&self) -> &LoopHandle {
        self.device_thread.handle()
    }

    /// What the two machines of a pair must have alike; the handshake compares it.
    #[must_use]
    pub fn layout(&self) -> MachineLayout {
        let memory = self.memory.iter();
        let virtio = self.devices.virtio().iter().map(|device| {
            let slot = device.slot();
            describe(slot, device.identity(), device.features(), self.devices.detail(slot))
        });
        let registers = self.devices.registers().iter().map(|device| {
            let slot = device.slot();
            describe(slot, device.identity(), 0, self.devices.detail(slot))
        });
        let pci = self.devices.pci_layout();
        MachineLayout {
            memory: memory
                .map(|region| MemoryRegion {
                    start: region.start_addr().raw_value(),
                    len: region.len(),
                })
                .collect(),
            cpus: self.vcpus.len() as u32,
            page_size: layout::PAGE_SIZE as u32,
            devices: virtio.chain(registers).chain(pci).collect(),
        }
    }

    /// Facts of the host that a guest depends on; the handshake compares them.
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

    /// The state of all devices. Device thread, vCPUs paused.
    ///
    /// # Errors
    /// None today: saving is total. Kept fallible because the checkpoint's callers treat it as a step that can fail.
    pub fn save_devices(&self) -> Result<Vec<DeviceRecord>, MachineError> {
        Ok(self.devices.save())
    }

    /// Takes on the state of all devices: of a machine that has not started, or whose vCPUs are paused. P5: on the device thread,
    /// as the code of devices runs on threads that can reach nothing.
    ///
    /// The answer is an error when it was saved from other devices, another release, or cannot be.
    pub fn restore_devices(
        &self,
        records: &[DeviceRecord],
    ) -> Answer<Result<(), DevicesRestoreError>> {
        let (devices, records) = (self.devices.clone(), records.to_vec());
        self.device_loop().ask(move |_| devices.restore(&records))
    }

    /// What the devices save once they have taken on this state; see [`restore_devices`](Self::restore_devices).
    pub fn restored_devices(
        &self,
        records: &[DeviceRecord],
    ) -> Answer<Result<Vec<DeviceRecord>, DevicesRestoreError>> {
        let (devices, records) = (self.devices.clone(), records.to_vec());
        self.device_loop().ask(move |_| devices.restore(&records).map(|()| devices.save()))
    }
}

fn describe(slot: u16, identity: Identity, features: u64, detail: &str) -> DeviceLayout {
    DeviceLayout {
        slot,
        kind: identity.kind.to_owned(),
        state_version: identity.state_version.into(),
        features,
        detail: detail.to_owned(),
    }
}

/// TSC frequencies that can be imitated need not be compared; others to 5 MHz, since every boot measures anew.
fn tsc_fact(info: &CompatInfo) -> String {
    const STEP_KHZ: u32 = 5000;
    match info.tsc_khz {
        Some(_) if info.tsc_control => "any frequency, by scaling".to_owned(),
        Some(khz) => format!("about {} MHz", (khz + STEP_KHZ / 2) / STEP_KHZ * STEP_KHZ / 1000),
        None => "of unknown frequency".to_owned(),
    }
}
