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

use super::interrupt::IrqLine;
use super::serving::Serving;

thread_local! {
    /// The slot whose gate this vCPU waits for, since its access has asked for more than the slot may.
    static AHEAD: Cell<Option<u16>> = const { Cell::new(None) };
}

/// Whether the calling vCPU may go on: no access of its waits for room at the gate. No lock is held while it waits (P7).
pub(super) fn may_go_on(gate: &GateHost) -> bool {
    let waits = AHEAD.get().filter(|slot| !gate.has_room(*slot));
    AHEAD.set(waits);
    waits.is_none()
}

/// Where the guest finds registers of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// I/O ports.
    Ports {
        /// The first.
        first: u16,
        /// How many.
        count: u16,
        /// The first one's offset in the device.
        offset: u64,
    },
    /// Guest physical addresses.
    Window {
        /// The first.
        base: u64,
        /// How many bytes.
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

    /// The device's own offset of an access at a port.
    fn of_port(self, base: u16, offset: u16) -> Option<u64> {
        match self {
            Self::Ports { first, offset: skip, .. } if first == base => {
                Some(skip + u64::from(offset))
            }
            _ => None,
        }
    }
}

/// One register device. Its mutex has the same place in the order of locks as that of a virtio window.
pub struct RegisterPort {
    number: u16,
    slot: Mutex<RegisterSlot>,
    places: Vec<Place>,
    irq: Option<IrqLine>,
}

impl RegisterPort {
    /// Puts a slot behind ports or windows; `irq` if it interrupts.
    #[must_use]
    pub fn new(slot: RegisterSlot, places: &[Place], irq: Option<IrqLine>) -> Self {
        Self { number: slot.slot(), slot: Mutex::new(slot), places: places.to_vec(), irq }
    }

    /// Puts it on the buses.
    ///
    /// # Errors
    /// When another device is there.
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

    /// The guest reads at an offset of the device.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let mut slot = self.lock();
        let line = slot.read(offset, data);
        self.drive(line);
        note_ahead(&slot);
    }

    /// The guest writes at an offset of the device.
    pub(super) fn write(&self, offset: u64, data: &[u8]) {
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

    /// What the device is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.lock().identity()
    }

    /// A backend has input. Device thread.
    pub fn intake(&self, port: Port) {
        let mut slot = self.lock();
        let line = slot.intake(port);
        self.drive(line);
    }

    /// The machine itself has something for the device. Device thread.
    pub(super) fn give(&self, data: &[u8]) {
        let mut slot = self.lock();
        let line = slot.give(data);
        self.drive(line);
    }

    /// The device was left with something to do. Device thread.
    pub fn complete(&self, completion: Completion) {
        let mut slot = self.lock();
        let line = slot.complete(completion);
        self.drive(line);
    }

    /// Goes on where the device stopped, and puts the interrupt line where the device has it: after a
    /// restore, which brings the interrupt controllers' state but not what drives their pins. Device
    /// thread.
    pub fn retry(&self) {
        let mut slot = self.lock();
        let line = slot.proceed();
        self.drive(line);
    }

    /// Lets the device reach guest memory, or not.
    pub(super) fn set_bus_master(&self, allowed: bool) {
        self.lock().set_bus_master(allowed);
    }

    /// Power-on state.
    pub fn reset(&self) {
        let mut slot = self.lock();
        slot.reset();
        let line = slot.line();
        self.drive(line);
    }

    /// Everything that a guest could tell the difference by.
    #[must_use]
    pub fn save(&self) -> RegisterState {
        self.lock().save()
    }

    /// As [`save`](Self::save), for a thread that serves others: none while somebody else has the device (P9).
    #[must_use]
    pub fn try_save(&self) -> Option<RegisterState> {
        self.slot.try_lock().ok().map(|slot| slot.save())
    }

    /// Takes on a saved state.
    ///
    /// # Errors
    /// When the state is another device's or cannot be.
    pub fn restore(&self, state: &RegisterState) -> Result<(), SlotError> {
        self.lock().restore(state)
    }

    /// Called with the slot locked, so that the line changes in the order of what caused it.
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
