//! The interrupt controller for device lines: a device's interrupt ends the first CPU's sleep early.
//!
//! Edge triggered, whatever the device does. A device that holds its line is acknowledged before the next sleep, and
//! the timer ends a sleep whose edge was lost.

use crate::{cpu, lapic};

/// The mask registers of the two 8259 controllers, which see every device line too.
const OLD_MASKS: [u16; 2] = [0x21, 0xa1];

/// Masks the 8259 controllers. A PC wires them to the local APIC, and unmasked they would deliver each device line a
/// second time, at the vector of an exception.
pub fn silence_old_controllers() {
    for port in OLD_MASKS {
        cpu::out_byte(port, 0xff);
    }
}

/// Its address if ACPI gives no other.
pub const DEFAULT_BASE: u64 = 0xfec0_0000;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const VERSION: u32 = 1;
const REDIRECTION: u32 = 0x10;

/// The controller.
pub struct IoApic {
    base: u64,
}

impl IoApic {
    /// The controller at `base`.
    pub const fn new(base: u64) -> Self {
        Self { base }
    }

    fn write(&self, register: u32, value: u32) {
        // SAFETY: the controller's registers, mapped one to one; it never writes to memory.
        unsafe {
            ((self.base + SELECT) as *mut u32).write_volatile(register);
            ((self.base + WINDOW) as *mut u32).write_volatile(value);
        }
    }

    fn read(&self, register: u32) -> u32 {
        // SAFETY: as for `write`.
        unsafe {
            ((self.base + SELECT) as *mut u32).write_volatile(register);
            ((self.base + WINDOW) as *const u32).read_volatile()
        }
    }

    /// Routes line `pin` to `vector` of this CPU. A line that the controller does not have is left to the timer.
    pub fn route(&self, pin: u32, vector: u8) {
        let last = self.read(VERSION) >> 16 & 0xff;
        if pin > last {
            return;
        }
        self.write(REDIRECTION + 2 * pin + 1, lapic::id() << 24);
        self.write(REDIRECTION + 2 * pin, u32::from(vector));
    }
}
