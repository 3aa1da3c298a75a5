//! A register device at its I/O ports.

use std::sync::{Mutex, MutexGuard};

use io_gate::{Identity, Port};
use io_gate_host::{RegisterSlot, RegisterState, SlotError};
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use super::interrupt::IrqLine;

/// One register device. Its mutex has the same place in the order of locks as that of a virtio window.
pub struct RegisterPort {
    slot: Mutex<RegisterSlot>,
    irq: Option<IrqLine>,
}

impl RegisterPort {
    /// Puts a slot behind ports; `irq` if it interrupts.
    #[must_use]
    pub fn new(slot: RegisterSlot, irq: Option<IrqLine>) -> Self {
        Self { slot: Mutex::new(slot), irq }
    }

    /// Its slot's number.
    #[must_use]
    pub fn slot(&self) -> u16 {
        self.lock().slot()
    }

    /// What the device is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.lock().identity()
    }

    /// A backend has input. Device thread.
    pub fn intake(&self, port: Port) {
        let mut slot = self.lock();
        let raised = slot.intake(port);
        self.raise(raised);
    }

    /// Power-on state.
    pub fn reset(&self) {
        self.lock().reset();
    }

    /// Everything that a guest could tell the difference by.
    #[must_use]
    pub fn save(&self) -> RegisterState {
        self.lock().save()
    }

    /// Takes on a saved state.
    ///
    /// # Errors
    /// When the state is another device's or cannot be.
    pub fn restore(&self, state: &RegisterState) -> Result<(), SlotError> {
        self.lock().restore(state)
    }

    fn raise(&self, raised: bool) {
        if let (true, Some(irq)) = (raised, &self.irq) {
            irq.pulse();
        }
    }

    fn lock(&self) -> MutexGuard<'_, RegisterSlot> {
        self.slot.lock().expect("a panic inside a device ends the machine")
    }
}

impl DevicePio for RegisterPort {
    fn pio_read(&self, _base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        let mut slot = self.lock();
        let raised = slot.read(u64::from(offset), data);
        self.raise(raised);
    }

    fn pio_write(&self, _base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let mut slot = self.lock();
        let raised = slot.write(u64::from(offset), data);
        self.raise(raised);
    }
}
