//! The machine's devices: delivers their input, finished requests, notifications and resets.

mod backends;
mod make;
mod state;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use devices::{Button, PowerControl};
use io_gate_host::backend::disk::Disk;
use io_gate_host::{Completion, GateHost};
use vm_device::bus::{MmioAddress, MmioRange, PioAddress, PioRange};
use vm_device::device_manager::{IoManager, MmioManager, PioManager};

use self::backends::Opened;
use crate::bus::QuietPort;
use crate::config::slots::POWER_SLOT;
use crate::device_error::DeviceSetupError;
use crate::events::Events;
use crate::pci::PciBus;
use crate::register_port::RegisterPort;
use crate::virtio_mmio::VirtioMmio;

pub use self::backends::AttachOptions;
pub use self::state::{DeviceRecord, DeviceState, DevicesRestoreError};

/// The clock chip's ports. The FADT says that there is no such chip, but kernels access the ports.
const CMOS_PORT: u16 = 0x70;
const CMOS_PORTS: u16 = 2;

/// The devices of a machine, by slot.
pub struct DeviceSet {
    gate: Arc<GateHost>,
    events: Arc<Events>,
    virtio: Vec<Arc<VirtioMmio>>,
    /// Number of windows that devices have.
    windows: usize,
    pci: Option<Arc<PciBus>>,
    registers: Vec<Arc<RegisterPort>>,
    details: Vec<(u16, String)>,
    attached: Mutex<bool>,
    /// Disks that are open and locked before they are attached, by slot. No other machine can start
    /// on one meanwhile (P2), even if the backends must be opened more than once.
    reserved: Mutex<BTreeMap<u16, Disk>>,
    /// Backends that are open but not attached yet.
    opened: Mutex<Option<Vec<Opened>>>,
}

impl DeviceSet {
    /// Registers the devices on the buses.
    pub(crate) fn io_manager(&self) -> Result<IoManager, DeviceSetupError> {
        let overlap = |e: vm_device::bus::Error| DeviceSetupError::Overlap(e.to_string());
        let mut io = IoManager::new();
        for device in &self.registers {
            device.put_on(&mut io).map_err(overlap)?;
        }
        if let Some(pci) = &self.pci {
            pci.put_on(&mut io).map_err(overlap)?;
        }
        let cmos = PioRange::new(PioAddress(CMOS_PORT), CMOS_PORTS).map_err(overlap)?;
        io.register_pio(cmos, Arc::new(QuietPort)).map_err(overlap)?;
        for device in &self.virtio {
            let window = device.window();
            let range = MmioRange::new(MmioAddress(window.base), window.size).map_err(overlap)?;
            io.register_mmio(range, device.clone()).map_err(overlap)?;
        }
        Ok(io)
    }

    pub(crate) fn gate(&self) -> &Arc<GateHost> {
        &self.gate
    }

    pub(crate) fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// The virtio devices, in the order of their windows.
    #[must_use]
    pub fn virtio(&self) -> &[Arc<VirtioMmio>] {
        &self.virtio
    }

    /// The slots of all devices that may have a backend.
    pub fn slots(&self) -> impl Iterator<Item = u16> + '_ {
        let virtio = self.virtio.iter().map(|device| device.slot());
        virtio.chain(self.registers.iter().map(|device| device.slot()))
    }

    fn power(&self) -> Option<&Arc<RegisterPort>> {
        self.registers.iter().find(|device| device.slot() == POWER_SLOT)
    }

    /// Presses the power button. Call it on the device thread.
    pub(crate) fn press_power_button(&self) {
        if let Some(power) = self.power() {
            power.give(&[1]);
        }
    }

    /// How the guest handles its power button; `None` if unknown, or while another thread uses the
    /// device.
    pub(crate) fn power_button(&self) -> Option<Button> {
        PowerControl::button(&self.power()?.try_save()?.device).ok()
    }

    /// The PCI bus, if there is one.
    #[must_use]
    pub fn pci(&self) -> Option<&Arc<PciBus>> {
        self.pci.as_ref()
    }

    /// The register devices.
    #[must_use]
    pub fn registers(&self) -> &[Arc<RegisterPort>] {
        &self.registers
    }

    /// A device's other properties in its description, for instance size or address.
    #[must_use]
    pub fn detail(&self, slot: u16) -> &str {
        self.details.iter().find(|(of, _)| *of == slot).map_or("", |(_, detail)| detail)
    }

    /// Delivers finished requests to their devices, all requests of a device at once. Call it on
    /// the device thread.
    pub fn take_completions(&self) {
        let mut completions = self.gate.take_completions();
        // The sort is stable: completions of one slot keep their order.
        completions.sort_by_key(Completion::slot);
        let mut rest = completions.into_iter().peekable();
        while let Some(slot) = rest.peek().map(Completion::slot) {
            let own = std::iter::from_fn(|| rest.next_if(|next| next.slot() == slot));
            if let Some(device) = self.virtio_of(slot) {
                device.complete(own);
            } else if let Some(device) = self.registers.iter().find(|device| device.slot() == slot)
            {
                own.for_each(|completion| device.complete(completion));
            } else {
                own.for_each(|completion| self.gate.discard(completion));
            }
        }
    }

    /// Delivers waiting input to the devices. Call it on the device thread.
    pub(crate) fn take_inputs(&self) {
        for (slot, port) in self.gate.ready_inputs() {
            if let Some(device) = self.virtio_of(slot) {
                device.intake(port);
            } else if let Some(device) = self.registers.iter().find(|device| device.slot() == slot)
            {
                device.intake(port);
            }
        }
    }

    /// Serves a queue that the driver has notified. Call it on the device thread.
    pub(crate) fn kick(&self, device: usize, queue: u16) {
        let Some(device) = self.virtio.get(device) else { return };
        if let Some(kick) = device.kicks().get(usize::from(queue)) {
            // Clear the event before reading the queue, so that a later notification signals again.
            kick.take();
        }
        device.kick(queue);
    }

    fn virtio_of(&self, slot: u16) -> Option<&Arc<VirtioMmio>> {
        self.virtio.iter().find(|device| device.slot() == slot)
    }

    /// Resets every device to its power-on state. Calls `progress` after each, because several
    /// backends may answer slowly.
    ///
    /// # Errors
    /// When a device cannot be reset now: the slot of the first one.
    pub(crate) fn reset(&self, progress: impl Fn()) -> Result<(), u16> {
        let stuck = self.virtio.iter().filter(|device| {
            progress();
            !device.reset()
        });
        // Reset every device, even after one that cannot be reset.
        let stuck: Vec<u16> = stuck.map(|device| device.slot()).collect();
        self.registers.iter().for_each(|device| device.reset());
        self.pci.iter().for_each(|pci| pci.reset());
        stuck.first().map_or(Ok(()), |slot| Err(*slot))
    }

    /// Serves every queue and interrupts every driver. Call it on the device thread after a
    /// restore.
    pub(crate) fn retry(&self) {
        self.registers.iter().for_each(|device| device.retry());
        self.virtio.iter().for_each(|device| device.retry());
    }
}
