//! The port and MMIO bus: routes the guest's accesses outside RAM to the devices.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use io_gate_host::GateHost;
use kemari_hypervisor::kvm::{ExitHandler, FatalExit};
use vm_device::DevicePio;
use vm_device::bus::{MmioAddress, PioAddress, PioAddressOffset};
use vm_device::device_manager::{IoManager, MmioManager, PioManager};

use crate::events::{Events, MachineEvent};
use crate::register_port;

/// Upper bound of the logged addresses: a guest that probes every address must not fill the log.
const MAX_NOTED: usize = 256;

/// Serves the exits of the vCPUs.
pub(crate) struct Bus {
    devices: IoManager,
    events: Arc<Events>,
    gate: Arc<GateHost>,
    noted: Mutex<BTreeSet<(&'static str, u64)>>,
}

impl Bus {
    pub(crate) fn new(devices: IoManager, events: Arc<Events>, gate: Arc<GateHost>) -> Self {
        Self { devices, events, gate, noted: Mutex::new(BTreeSet::new()) }
    }

    /// Logs an access to an address without a device, once per address, for authors of guests.
    fn note(&self, what: &'static str, addr: u64) {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.len() < MAX_NOTED && noted.insert((what, addr)) {
            log::debug!("the guest {what} {addr:#x}, where there is no device");
        }
    }
}

fn ports_from(port: u16) -> impl Iterator<Item = u16> {
    (0..).map(move |next| port.wrapping_add(next))
}

impl ExitHandler for Bus {
    fn pio_in(&self, port: u16, data: &mut [u8]) {
        if self.devices.pio_read(PioAddress(port), data).is_ok() {
            return;
        }
        // No device has all of these ports: split the access into bytes, one per port, as a PC's
        // bus does.
        let wide = data.len() > 1;
        let mut somebody = false;
        for (byte, port) in data.iter_mut().zip(ports_from(port)) {
            let one = std::slice::from_mut(byte);
            if wide && self.devices.pio_read(PioAddress(port), one).is_ok() {
                somebody = true;
            } else {
                // A bus that no device drives reads as ones.
                one.fill(0xff);
            }
        }
        if !somebody {
            self.note("reads port", port.into());
        }
    }

    fn pio_out(&self, port: u16, data: &[u8]) {
        if self.devices.pio_write(PioAddress(port), data).is_ok() {
            return;
        }
        let wide = data.len() > 1;
        let mut somebody = false;
        for (byte, port) in data.iter().zip(ports_from(port)).filter(|_| wide) {
            somebody |= self.devices.pio_write(PioAddress(port), &[*byte]).is_ok();
        }
        if !somebody {
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

    fn may_go_on(&self) -> bool {
        register_port::may_go_on(&self.gate)
    }

    fn on_fatal(&self, vcpu: usize, exit: FatalExit) {
        self.events.post(MachineEvent::Fatal { vcpu, exit });
    }
}

/// A port that ignores writes, for ports that guests routinely access although no device is there
/// (the clock chip's).
pub(crate) struct QuietPort;

impl DevicePio for QuietPort {
    fn pio_read(&self, _base: PioAddress, _offset: PioAddressOffset, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn pio_write(&self, _base: PioAddress, _offset: PioAddressOffset, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use io_gate::host::new_gate;
    use io_gate_host::{GateOptions, Unfenced};
    use kemari_hypervisor::memory::{self, MemoryOptions};
    use vm_device::bus::PioRange;

    use super::*;

    /// Records each write; a read returns the port's offset.
    #[derive(Default)]
    struct Ports(Mutex<Vec<(u16, Vec<u8>)>>);

    impl DevicePio for Ports {
        fn pio_read(&self, _base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
            data.fill(offset as u8);
        }

        fn pio_write(&self, _base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn a_wide_access_reaches_the_ports_that_there_are() {
        let (one, eight) = (Arc::new(Ports::default()), Arc::new(Ports::default()));
        let mut io = IoManager::new();
        io.register_pio(PioRange::new(PioAddress(0x64), 1).unwrap(), one.clone()).unwrap();
        io.register_pio(PioRange::new(PioAddress(0x3f8), 8).unwrap(), eight.clone()).unwrap();
        let ram = memory::create(MemoryOptions { size: 16 << 20, huge_pages: false }).unwrap();
        let gate =
            GateHost::new(new_gate().0, Arc::new(ram), Arc::new(Unfenced), GateOptions::default())
                .unwrap();
        let bus = Bus::new(io, Arc::new(Events::new().unwrap()), gate);
        // A reset command as the lower byte of a word.
        bus.pio_out(0x64, &[0xfe, 0]);
        assert_eq!(*one.0.lock().unwrap(), [(0, vec![0xfe])]);
        // An access within a device reaches the device whole; an access across its end is split
        // into bytes.
        bus.pio_out(0x3f8, &[1, 2]);
        bus.pio_out(0x3ff, &[3, 4]);
        bus.pio_out(0x3f7, &[5, 6]);
        assert_eq!(*eight.0.lock().unwrap(), [(0, vec![1, 2]), (7, vec![3]), (0, vec![6])]);
        let mut word = [0; 2];
        bus.pio_in(0x3ff, &mut word);
        assert_eq!(word, [7, 0xff]);
        bus.pio_in(0xffff, &mut word);
        assert_eq!(word, [0xff; 2]);
    }
}
