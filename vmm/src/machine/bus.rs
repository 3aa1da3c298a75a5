//! What the guest meets at ports and addresses that are not RAM: its devices, and nothing elsewhere.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use vm_device::DevicePio;
use vm_device::bus::{MmioAddress, PioAddress, PioAddressOffset};
use vm_device::device_manager::{IoManager, MmioManager, PioManager};

use super::events::{Events, MachineEvent};
use crate::kvm::{ExitHandler, FatalExit};

/// A guest that probes everything does not fill the log.
const MAX_NOTED: usize = 256;

/// Serves the exits of the vCPUs.
pub(super) struct Bus {
    devices: IoManager,
    events: Arc<Events>,
    noted: Mutex<BTreeSet<(&'static str, u64)>>,
}

impl Bus {
    pub(super) fn new(devices: IoManager, events: Arc<Events>) -> Self {
        Self { devices, events, noted: Mutex::new(BTreeSet::new()) }
    }

    /// An access to nothing: once to the log, for authors of guests.
    fn note(&self, what: &'static str, addr: u64) {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.len() < MAX_NOTED && noted.insert((what, addr)) {
            log::debug!("the guest {what} {addr:#x}, where there is no device");
        }
    }
}

impl ExitHandler for Bus {
    fn pio_in(&self, port: u16, data: &mut [u8]) {
        if self.devices.pio_read(PioAddress(port), data).is_err() {
            // A bus that nobody drives floats high.
            data.fill(0xff);
            self.note("reads port", port.into());
        }
    }

    fn pio_out(&self, port: u16, data: &[u8]) {
        if self.devices.pio_write(PioAddress(port), data).is_err() {
            self.note("writes port", port.into());
        }
    }

    fn mmio_read(&self, addr: u64, data: &mut [u8]) {
        if self.devices.mmio_read(MmioAddress(addr), data).is_err() {
            data.fill(0xff);
            self.note("reads address", addr);
        }
    }

    fn mmio_write(&self, addr: u64, data: &[u8]) {
        if self.devices.mmio_write(MmioAddress(addr), data).is_err() {
            self.note("writes address", addr);
        }
    }

    fn on_fatal(&self, vcpu: usize, exit: FatalExit) {
        self.events.post(MachineEvent::Fatal { vcpu, exit });
    }
}

/// A port that takes everything and says nothing, where guests knock as a matter of course (the clock chip's ports).
pub(super) struct QuietPort;

impl DevicePio for QuietPort {
    fn pio_read(&self, _base: PioAddress, _offset: PioAddressOffset, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn pio_write(&self, _base: PioAddress, _offset: PioAddressOffset, _data: &[u8]) {}
}
