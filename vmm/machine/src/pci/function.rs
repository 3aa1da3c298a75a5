//! The configuration space of one PCI function (PCI Local Bus Specification 3.0, section 6.1): a
//! device with at most one memory window, one I/O window and one interrupt pin.

use serde::{Deserialize, Serialize};

/// The constant properties of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// Vendor number.
    pub vendor: u16,
    /// Device number.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass and programming interface, 8 bits each.
    pub class: u32,
    /// Length of the memory window in bytes, a power of two; 0: none.
    pub memory: u32,
    /// Number of ports of the I/O window, a power of two; 0: none.
    pub io: u32,
    /// Whether it has an interrupt pin (INTA#).
    pub interrupt: bool,
}

/// Offsets in the configuration space, in bytes.
mod at {
    pub(super) const COMMAND: u8 = 0x04;
    pub(super) const CLASS: u8 = 0x08;
    pub(super) const CACHE_LINE: u8 = 0x0c;
    pub(super) const MEMORY: u8 = 0x10;
    pub(super) const IO: u8 = 0x14;
    pub(super) const SUBSYSTEM: u8 = 0x2c;
    pub(super) const INTERRUPT: u8 = 0x3c;
}

/// Bits of the command register.
mod command {
    pub(super) const IO: u16 = 1 << 0;
    pub(super) const MEMORY: u16 = 1 << 1;
    pub(super) const MASTER: u16 = 1 << 2;
    /// Includes the bits that have no effect here: memory write and invalidate, parity, errors.
    pub(super) const WRITABLE: u16 = IO | MEMORY | MASTER | 1 << 4 | 1 << 6 | 1 << 8;
}

/// Medium timing, the usual value of a device that is not faster.
const STATUS: u32 = 0x0200;
/// Marks a window of I/O ports.
const IO_WINDOW: u32 = 1;
/// The interrupt pin INTA#.
const PIN_A: u32 = 1;

/// The part of the configuration space that a driver or an operating system can change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionState {
    /// The command register: enabled windows and bus mastering.
    pub command: u16,
    /// The register of its memory window.
    pub memory: u32,
    /// The register of its I/O window, without the bit that marks it as one.
    pub io: u32,
    /// The size of a cache line; has no effect here.
    pub cache_line: u8,
    /// The latency timer; has no effect here.
    pub latency: u8,
    /// The interrupt number, which firmware writes for operating systems.
    pub interrupt_line: u8,
}

/// One PCI function.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function {
    description: Description,
    power_on: FunctionState,
    state: FunctionState,
}

impl Function {
    /// A function as firmware leaves it: its windows have addresses and are closed.
    pub(super) fn new(description: Description, memory: u64, io: u16, gsi: u8) -> Self {
        let power_on = FunctionState {
            memory: if description.memory == 0 { 0 } else { memory as u32 },
            io: if description.io == 0 { 0 } else { io.into() },
            interrupt_line: gsi,
            ..FunctionState::default()
        };
        Self { description, power_on, state: power_on }
    }

    /// Reads a 32-bit register.
    pub(super) fn read(&self, offset: u8) -> u32 {
        let Self { description, state, .. } = self;
        let identity = u32::from(description.device) << 16 | u32::from(description.vendor);
        match offset {
            0 => identity,
            at::COMMAND => STATUS << 16 | u32::from(state.command),
            at::CLASS => description.class << 8 | u32::from(description.revision),
            at::CACHE_LINE => u32::from(state.latency) << 8 | u32::from(state.cache_line),
            at::MEMORY => state.memory,
            at::IO if description.io > 0 => state.io | IO_WINDOW,
            at::SUBSYSTEM => identity,
            at::INTERRUPT if description.interrupt => PIN_A << 8 | u32::from(state.interrupt_line),
            _ => 0,
        }
    }

    /// Writes a 32-bit register; returns whether windows or bus mastering may have changed.
    pub(super) fn write(&mut self, offset: u8, value: u32) -> bool {
        let Self { description, state, .. } = self;
        let before = *state;
        match offset {
            // The status, in the upper half, has no bits that a write clears.
            at::COMMAND => state.command = value as u16 & command::WRITABLE,
            at::CACHE_LINE => {
                state.cache_line = value as u8;
                state.latency = (value >> 8) as u8;
            }
            // The bits below a window's size stay zero: a driver reads the size from this.
            at::MEMORY => state.memory = value & window_mask(description.memory),
            at::IO => state.io = value & window_mask(description.io),
            at::INTERRUPT if description.interrupt => state.interrupt_line = value as u8,
            _ => {}
        }
        let relevant = |state: &FunctionState| (state.command, state.memory, state.io);
        relevant(&before) != relevant(state)
    }

    /// Length of the memory window in bytes.
    pub(super) fn memory_size(&self) -> u64 {
        self.description.memory.into()
    }

    /// First address and length of the memory window; `None`: it is closed.
    pub(super) fn memory(&self) -> Option<(u64, u64)> {
        let open = self.state.command & command::MEMORY != 0 && self.description.memory > 0;
        open.then_some((self.state.memory.into(), self.description.memory.into()))
    }

    /// First port and length of the I/O window; `None`: it is closed, or its ports do not exist.
    pub(super) fn io(&self) -> Option<(u16, u16)> {
        let open = self.state.command & command::IO != 0 && self.description.io > 0;
        let first = u16::try_from(self.state.io).ok().filter(|_| open)?;
        Some((first, self.description.io as u16))
    }

    /// Whether it may access guest memory on its own.
    pub(super) fn is_bus_master(&self) -> bool {
        self.state.command & command::MASTER != 0
    }

    pub(super) fn reset(&mut self) {
        self.state = self.power_on;
    }

    pub(super) fn save(&self) -> FunctionState {
        self.state
    }

    /// Restores a saved state; `false` if no driver can have written it.
    #[must_use]
    pub(super) fn restore(&mut self, saved: FunctionState) -> bool {
        let possible = saved.command & !command::WRITABLE == 0
            && saved.memory & !window_mask(self.description.memory) == 0
            && saved.io & !window_mask(self.description.io) == 0;
        if possible {
            self.state = saved;
        }
        possible
    }
}

/// The bits that can be set in a window's register.
fn window_mask(size: u32) -> u32 {
    if size == 0 { 0 } else { !(size - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARD: Description = Description {
        vendor: 0x8086,
        device: 0x100e,
        revision: 2,
        class: 0x02_0000,
        memory: 0x2_0000,
        io: 0x40,
        interrupt: true,
    };

    #[test]
    fn windows_tell_their_size_and_can_be_moved() {
        let mut function = Function::new(CARD, 0xe000_0000, 0xc000, 22);
        assert_eq!((function.read(at::MEMORY), function.read(at::IO)), (0xe000_0000, 0xc001));
        assert_eq!((function.memory(), function.io()), (None, None), "closed at power-on");
        assert!(function.write(at::MEMORY, u32::MAX));
        assert!(function.write(at::IO, u32::MAX));
        assert_eq!((function.read(at::MEMORY), function.read(at::IO)), (0xfffe_0000, 0xffff_ffc1));
        assert!(function.write(at::COMMAND, 0xffff_ffff));
        assert_eq!(function.io(), None, "there are no such ports");
        let _ = (function.write(at::MEMORY, 0xe002_0000), function.write(at::IO, 0xc041));
        assert_eq!(function.memory(), Some((0xe002_0000, 0x2_0000)));
        assert_eq!(function.io(), Some((0xc040, 0x40)));
        assert!(function.is_bus_master());
        let mut other = Function::new(CARD, 0xe000_0000, 0xc000, 22);
        assert!(other.restore(function.save()));
        assert_eq!(other.save(), function.save());
        assert!(!other.restore(FunctionState { memory: 0x1000, ..function.save() }));
    }

    #[test]
    fn a_function_without_windows_has_none() {
        let bridge = Description { memory: 0, io: 0, interrupt: false, ..CARD };
        let mut function = Function::new(bridge, 0, 0, 0);
        assert!(!function.write(at::MEMORY, u32::MAX) && !function.write(at::IO, u32::MAX));
        assert_eq!([0x10, 0x14, 0x30, 0x34, 0x3c].map(|offset| function.read(offset)), [0; 5]);
        assert_eq!(function.read(at::CLASS), 0x0200_0002);
    }
}
