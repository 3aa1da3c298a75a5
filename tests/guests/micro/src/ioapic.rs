//! The I/O APIC: routes device interrupts, which end the first CPU's halt early.
//!
//! All lines are edge triggered. The guest acknowledges a device that keeps its line high before it
//! halts again, and the timer ends a halt whose edge was lost.

use crate::{cpu, lapic};

/// The mask registers of the two 8259 controllers, which receive all device lines too.
const OLD_MASKS: [u16; 2] = [0x21, 0xa1];

/// Masks the 8259 controllers. A PC connects them to the local APIC: unmasked, they would deliver
/// each device interrupt a second time, at the vector of an exception.
pub fn silence_old_controllers() {
    for port in OLD_MASKS {
        cpu::out_byte(port, 0xff);
    }
}

/// The address of the I/O APIC if ACPI does not name one.
pub const DEFAULT_BASE: u64 = 0xfec0_0000;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const VERSION: u32 = 1;
const REDIRECTION: u32 = 0x10;

/// The I/O APIC.
pub struct IoApic {
    base: u64,
}

impl IoApic {
    /// The I/O APIC at `base`.
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

    /// Routes line `pin` to `vector` of this CPU. Does nothing if the controller lacks the line;
    /// the timer then ends the halt.
    pub fn route(&self, pin: u32, vector: u8) {
        let last = self.read(VERSION) >> 16 & 0xff;
        if pin > last {
            return;
        }
        self.write(REDIRECTION + 2 * pin + 1, lapic::id() << 24);
        self.write(REDIRECTION + 2 * pin, u32::from(vector));
    }
}
