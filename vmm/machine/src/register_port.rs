//! A register device at its I/O ports or in its address windows.

use std::cell::Cell;
use std::sync::{Arc, Mutex};

use io_gate::{Identity, LineState, Port};
use io_gate_host::{Completion, GateHost, RegisterSlot, RegisterState, SlotError};
use vm_device::bus::{
    self, MmioAddress, MmioAddressOffset, MmioRange, PioAddress, PioAddressOffset, PioRange,
};
use vm_device::device_manager::{IoManager, MmioManager, PioManager};
use vm_device::{DeviceMmio, DevicePio};

use crate::interrupt::IrqLine;
use crate::serving::Serving;

thread_local! {
    /// The slot at whose gate this vCPU waits for room: its last access has filled the slot's
    /// share.
    static AHEAD: Cell<Option<u16>> = const { Cell::new(None) };
}

/// Whether the calling vCPU may enter the guest: none of its accesses waits for room at the gate. A
/// vCPU holds no lock while it waits (P7).
pub(crate) fn may_go_on(gate: &GateHost) -> bool {
    let waits = AHEAD.get().filter(|slot| !gate.has_room(*slot));
    AHEAD.set(waits);
    waits.is_none()
}

/// Where the guest accesses a device's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// I/O ports.
    Ports {
        /// The first port.
        first: u16,
        /// Number of ports.
        count: u16,
        /// The offset of the first port in the device's registers.
        offset: u64,
    },
    /// Guest physical addresses.
    Window {
        /// The first address.
        base: u64,
        /// Size in bytes.
        size: u64,
    },
}

impl Place {
    /// All of a device's ports.
    #[must_use]
    pub fn ports(first: u16, count: u16) -> Self {
        Self::Ports { first, count, offset: 0 }
    }

    /// A device's only window.
    #[must_use]
    pub fn window(base: u64, size: u64) -> Self {
        Self::Window { base, size }
    }

    /// The offset in the device's registers of an access at a port; `None`: the port is not in this
    /// place.
    fn of_port(self, base: u16, offset: u16) -> Option<u64> {
        match self {
            Self::Ports { first, offset: skip, .. } if first == base => {
                Some(skip + u64::from(offset))
            }
            _ => None,
        }
    }
}

/// One register device. Its mutex has the same place in the lock order as that of a virtio window
/// (`docs/threads.md`).
pub struct RegisterPort {
    number: u16,
    slot: Mutex<RegisterSlot>,
    places: Vec<Place>,
    irq: Option<IrqLine>,
}

impl RegisterPort {
    /// Makes a slot accessible at `places`; `irq` is its interrupt line, if it has one.
    #[must_use]
    pub fn new(slot: RegisterSlot, places: &[Place], irq: Option<IrqLine>) -> Self {
        Self { number: slot.slot(), slot: Mutex::new(slot), places: places.to_vec(), irq }
    }

    /// Registers the device on the buses.
    ///
    /// # Errors
    /// When another device has one of the addresses.
    pub fn put_on(self: &Arc<Self>, io: &mut IoManager) -> Result<(), bus::Error> {
        for place in &self.places {
            match *place {
                Place::Ports { first, count, .. } => {
                    io.register_pio(PioRange::new(PioAddress(first), count)?, self.clone())?;
                }
                Place::Window { base, size } => {
                    io.register_mmio(MmioRange::new(MmioAddress(base), size)?, self.clone())?;
                }
            }
        }
        Ok(())
    }

    /// Serves a read at an offset of the device's registers.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        let mut slot = self.lock();
        let line = slot.read(offset, data);
        self.drive(line);
        note_ahead(&slot);
    }

    /// Serves a write at an offset of the device's registers.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        let mut slot = self.lock();
        let line = slot.write(offset, data);
        self.drive(line);
        note_ahead(&slot);
    }

    fn port_offset(&self, base: PioAddress, offset: PioAddressOffset) -> u64 {
        let found = self.places.iter().find_map(|place| place.of_port(base.0, offset));
        found.expect("the bus calls with the ranges that were registered")
    }

    /// Its slot's number.
    #[must_use]
    pub fn slot(&self) -> u16 {
        self.number
    }

    /// The device's kind and version.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.lock().identity()
    }

    /// Delivers a backend's input. Call it on the device thread.
    pub fn intake(&self, port: Port) {
        let mut slot = self.lock();
        let line = slot.intake(port);
        self.drive(line);
    }

    /// Delivers input from the machine itself. Call it on the device thread.
    pub(crate) fn give(&self, data: &[u8]) {
        let mut slot = self.lock();
        let line = slot.give(data);
        self.drive(line);
    }

    /// Delivers a finished request. Call it on the device thread.
    pub fn complete(&self, completion: Completion) {
        let mut slot = self.lock();
        let line = slot.complete(completion);
        self.drive(line);
    }

    /// Continues the device's work and sets the interrupt line to the device's level. Call it on
    /// the device thread after a restore: a restore sets the interrupt controllers, but not the
    /// lines that drive their pins.
    pub fn retry(&self) {
        let mut slot = self.lock();
        let line = slot.proceed();
        self.drive(line);
    }

    /// Allows or forbids the device's accesses to guest memory.
    pub(crate) fn set_bus_master(&self, allowed: bool) {
        self.lock().set_bus_master(allowed);
    }

    /// Resets the device to its power-on state.
    pub fn reset(&self) {
        let mut slot = self.lock();
        slot.reset();
        let line = slot.line();
        self.drive(line);
    }

    /// Saves all state that a guest can see.
    #[must_use]
    pub fn save(&self) -> RegisterState {
        self.lock().save()
    }

    /// Does what [`save`](Self::save) does, without waiting; `None` while another thread uses the
    /// device (P9).
    #[must_use]
    pub fn try_save(&self) -> Option<RegisterState> {
        self.slot.try_lock().ok().map(|slot| slot.save())
    }

    /// Restores a saved state.
    ///
    /// # Errors
    /// When the state belongs to another device, or is not possible.
    pub fn restore(&self, state: &RegisterState) -> Result<(), SlotError> {
        self.lock().restore(state)
    }

    /// Drives the interrupt line. Call it with the slot locked, so that the line changes in the
    /// order of its causes.
    fn drive(&self, line: LineState) {
        let Some(irq) = &self.irq else { return };
        match line {
            LineState::Quiet => {}
            LineState::Pulse => irq.pulse(),
            LineState::Level(asserted) => irq.set(asserted),
        }
    }

    fn lock(&self) -> Serving<'_, RegisterSlot> {
        let slot = self.slot.lock().expect("a panic inside a device ends the machine");
        let identity = slot.identity();
        Serving::begin(slot, &identity, self.number)
    }
}

fn note_ahead(slot: &RegisterSlot) {
    if slot.is_ahead() {
        AHEAD.set(Some(slot.slot()));
    }
}

impl DevicePio for RegisterPort {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        self.read(self.port_offset(base, offset), data);
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        self.write(self.port_offset(base, offset), data);
    }
}

impl DeviceMmio for RegisterPort {
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        self.read(offset, data);
    }

    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        self.write(offset, data);
    }
}
