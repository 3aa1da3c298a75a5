//! A minimal PCI bus: configuration mechanism #1 (PCI Local Bus Specification 3.0, section
//! 3.2.2.3.2), a host bridge, and the devices behind it. A machine without a PCI device has no bus.

mod function;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use kemari_hypervisor::layout;
use serde::{Deserialize, Serialize};
use vm_device::bus::{
    self, MmioAddress, MmioAddressOffset, MmioRange, PioAddress, PioAddressOffset, PioRange,
};
use vm_device::device_manager::{IoManager, MmioManager, PioManager};
use vm_device::{DeviceMmio, DevicePio};

pub use function::{Description, FunctionState};

use crate::description::DeviceDescription;
use crate::register_port::RegisterPort;
use function::Function;

/// The function at 00:00.0: Intel's 82441FX, a host bridge that every operating system knows and
/// for which none has a driver.
const HOST_BRIDGE: Description = Description {
    vendor: 0x8086,
    device: 0x1237,
    revision: 2,
    class: 0x06_0000,
    memory: 0,
    io: 0,
    interrupt: false,
};

/// The kind of the bus's saved state and of its description.
pub(crate) const KIND: &str = "pci";
const PCI_STATE_VERSION: u16 = 1;

/// Bit 31 of the address register enables the data register; the lower bits select bus, device,
/// function and register.
const ENABLE: u32 = 1 << 31;
const ADDRESS_BITS: u32 = 0x80ff_fffc;

/// All state of the bus that a guest can see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciState {
    /// The version of this structure's layout.
    pub version: u16,
    /// The address register.
    pub address: u32,
    /// The functions, by device number, the host bridge first.
    pub functions: Vec<FunctionState>,
}

/// Why the bus refuses a saved state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PciError {
    /// The state has another version.
    #[error(
        "PCI state: expected version {PCI_STATE_VERSION}, found {found}; run the same release on both sides"
    )]
    Version {
        /// The saved version.
        found: u16,
    },
    /// The number of devices differs.
    #[error(
        "PCI state: expected {expected} devices, found {found}; give both sides the same --net"
    )]
    Count {
        /// Number of devices on this bus, with the host bridge.
        expected: usize,
        /// Number of devices in the saved state.
        found: usize,
    },
    /// No driver can have written this state.
    #[error(
        "PCI state of device {device}: expected values that a driver can write, found {found:?}"
    )]
    Impossible {
        /// The device number.
        device: usize,
        /// The saved state.
        found: FunctionState,
    },
}

/// The PCI bus.
///
/// Lock order: `inner`, then `decoded` or a slot. A thread that serves an access holds `decoded`
/// for reading, then a slot. No slot takes a lock of the bus.
pub struct PciBus {
    inner: Mutex<Inner>,
    /// The open windows, by address.
    decoded: RwLock<IoManager>,
}

struct Inner {
    address: u32,
    slots: Vec<Slot>,
}

/// A function, and the registers behind its windows; the host bridge has no registers.
struct Slot {
    function: Function,
    port: Option<Arc<RegisterPort>>,
}

impl PciBus {
    /// Makes a bus with a host bridge and these devices, the first at 00:01.0.
    #[must_use]
    pub fn new(devices: Vec<(Description, Arc<RegisterPort>)>) -> Self {
        let bridge = Slot { function: Function::new(HOST_BRIDGE, 0, 0, 0), port: None };
        let devices = devices.into_iter().zip(layout::pci_places());
        let slots = devices.map(|((description, port), place)| Slot {
            function: Function::new(description, place.memory, place.io, place.gsi as u8),
            port: Some(port),
        });
        Self {
            inner: Mutex::new(Inner {
                address: 0,
                slots: std::iter::once(bridge).chain(slots).collect(),
            }),
            decoded: RwLock::new(IoManager::new()),
        }
    }

    /// Registers the bus in the machine: the configuration ports, and the ranges in which windows
    /// may lie.
    ///
    /// # Errors
    /// When another device has one of the addresses.
    pub fn put_on(self: &Arc<Self>, io: &mut IoManager) -> Result<(), bus::Error> {
        let config = PioRange::new(PioAddress(layout::PCI_CONFIG_PORT), layout::PCI_CONFIG_PORTS)?;
        io.register_pio(config, Arc::new(ConfigPorts(self.clone())))?;
        let ports = PioRange::new(PioAddress(layout::PCI_IO_BASE), layout::PCI_IO_SIZE)?;
        io.register_pio(ports, Arc::new(Windows(self.clone())))?;
        let memory = MmioRange::new(MmioAddress(layout::PCI_MMIO_BASE), layout::PCI_MMIO_SIZE)?;
        io.register_mmio(memory, Arc::new(Windows(self.clone())))
    }

    /// Describes the bus: the place and identity of each function.
    pub(crate) fn describe(&self, slot: u16) -> DeviceDescription {
        let inner = self.lock();
        let devices = inner.slots.iter().enumerate().map(|(device, slot)| {
            let identity = slot.function.read(0);
            format!("00:{device:02x}.0 {:04x}:{:04x}", identity as u16, identity >> 16)
        });
        DeviceDescription {
            slot,
            kind: KIND.to_owned(),
            state_version: PCI_STATE_VERSION.into(),
            features: 0,
            detail: devices.collect::<Vec<_>>().join(", "),
        }
    }

    /// Resets the bus to its power-on state. The vCPUs must be paused.
    pub fn reset(&self) {
        let mut inner = self.lock();
        inner.address = 0;
        inner.slots.iter_mut().for_each(|slot| slot.function.reset());
        self.decode(&inner);
    }

    /// Saves all state that a guest can see.
    #[must_use]
    pub fn save(&self) -> PciState {
        let inner = self.lock();
        PciState {
            version: PCI_STATE_VERSION,
            address: inner.address,
            functions: inner.slots.iter().map(|slot| slot.function.save()).collect(),
        }
    }

    /// Restores a saved state, and gives the devices their right to master the bus.
    ///
    /// # Errors
    /// When the state belongs to another bus, or is not possible.
    pub fn restore(&self, state: &PciState) -> Result<(), PciError> {
        let mut inner = self.lock();
        if state.version != PCI_STATE_VERSION {
            return Err(PciError::Version { found: state.version });
        }
        let (expected, found) = (inner.slots.len(), state.functions.len());
        if expected != found {
            return Err(PciError::Count { expected, found });
        }
        for (device, (slot, saved)) in inner.slots.iter_mut().zip(&state.functions).enumerate() {
            if !slot.function.restore(*saved) {
                return Err(PciError::Impossible { device, found: *saved });
            }
        }
        inner.address = state.address & ADDRESS_BITS;
        self.decode(&inner);
        Ok(())
    }

    /// Opens the windows that the functions' registers enable. A window outside the bus's ranges,
    /// or over another one, stays closed: nothing answers there, as on a real bus. While a guest
    /// sizes a window, its address may be anywhere.
    fn decode(&self, inner: &Inner) {
        let mut decoded = IoManager::new();
        for slot in &inner.slots {
            let Some(port) = &slot.port else { continue };
            port.set_bus_master(slot.function.is_bus_master());
            if let Some((first, size)) = slot.function.memory() {
                let range = MmioRange::new(MmioAddress(first), size);
                let window = Arc::new(Window { port: port.clone(), offset: 0 });
                note(range.and_then(|range| decoded.register_mmio(range, window)));
            }
            if let Some((first, size)) = slot.function.io() {
                let range = PioRange::new(PioAddress(first), size);
                let offset = slot.function.memory_size();
                let window = Arc::new(Window { port: port.clone(), offset });
                note(range.and_then(|range| decoded.register_pio(range, window)));
            }
        }
        *self.decoded.write().unwrap_or_else(PoisonError::into_inner) = decoded;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the address or the data register: 1, 2 or 4 bytes at one of the eight ports.
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let inner = self.lock();
        let value = if offset < 4 { inner.address } else { inner.read() };
        copy_part(&value.to_le_bytes(), usize::from(offset % 4), data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        let mut inner = self.lock();
        if offset < 4 {
            // Only a 32-bit write to the first port reaches the address register (3.2.2.3.2).
            if let (0, Ok(bytes)) = (offset, <[u8; 4]>::try_from(data)) {
                inner.address = u32::from_le_bytes(bytes) & ADDRESS_BITS;
            }
            return;
        }
        let mut bytes = inner.read().to_le_bytes();
        for (to, from) in bytes.iter_mut().skip(usize::from(offset % 4)).zip(data) {
            *to = *from;
        }
        if inner.write(u32::from_le_bytes(bytes)) {
            self.decode(&inner);
        }
    }
}

impl Inner {
    /// The function and the register that the address register selects; `None`: there is no such
    /// function.
    fn target(&self) -> Option<(usize, u8)> {
        let (bus, device) = (self.address >> 16 & 0xff, self.address >> 11 & 0x1f);
        let function = self.address >> 8 & 7;
        let there = self.address & ENABLE != 0 && bus == 0 && function == 0;
        (there && (device as usize) < self.slots.len())
            .then_some((device as usize, self.address as u8))
    }

    /// Reads the selected register. Without a function there, returns ones, as guests expect.
    fn read(&self) -> u32 {
        match self.target() {
            Some((device, offset)) => self.slots[device].function.read(offset),
            None => u32::MAX,
        }
    }

    fn write(&mut self, value: u32) -> bool {
        match self.target() {
            Some((device, offset)) => self.slots[device].function.write(offset, value),
            None => false,
        }
    }
}

fn note(registered: Result<(), bus::Error>) {
    if let Err(error) = registered {
        log::debug!("a PCI window stays closed: {error}");
    }
}

/// Copies the part of a register that a narrower access reads.
fn copy_part(register: &[u8; 4], from: usize, into: &mut [u8]) {
    into.fill(0xff);
    for (to, from) in into.iter_mut().zip(&register[from..]) {
        *to = *from;
    }
}

/// The eight configuration ports.
struct ConfigPorts(Arc<PciBus>);

impl DevicePio for ConfigPorts {
    fn pio_read(&self, _base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        self.0.read_config(offset, data);
    }

    fn pio_write(&self, _base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        self.0.write_config(offset, data);
    }
}

/// The ranges in which windows may lie.
struct Windows(Arc<PciBus>);

impl Windows {
    fn with<R>(&self, access: impl FnOnce(&IoManager) -> R) -> R {
        access(&self.0.decoded.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl DevicePio for Windows {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        if self.with(|open| open.pio_read(PioAddress(base.0 + offset), data)).is_err() {
            data.fill(0xff);
        }
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        // If no window is open there, the write is lost.
        let _ = self.with(|open| open.pio_write(PioAddress(base.0 + offset), data));
    }
}

impl DeviceMmio for Windows {
    fn mmio_read(&self, base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        if self.with(|open| open.mmio_read(MmioAddress(base.0 + offset), data)).is_err() {
            data.fill(0xff);
        }
    }

    fn mmio_write(&self, base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        // If no window is open there, the write is lost.
        let _ = self.with(|open| open.mmio_write(MmioAddress(base.0 + offset), data));
    }
}

/// One open window: a part of a device's registers.
struct Window {
    port: Arc<RegisterPort>,
    /// Its offset in the device's registers: the I/O window follows the memory window.
    offset: u64,
}

impl DevicePio for Window {
    fn pio_read(&self, _base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        self.port.read(self.offset + u64::from(offset), data);
    }

    fn pio_write(&self, _base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        self.port.write(self.offset + u64::from(offset), data);
    }
}

impl DeviceMmio for Window {
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        self.port.read(self.offset + offset, data);
    }

    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        self.port.write(self.offset + offset, data);
    }
}
