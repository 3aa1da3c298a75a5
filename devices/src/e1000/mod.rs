//! Intel 82540EM network card (e1000), after Intel's *PCI/PCI-X Family of Gigabit Ethernet
//! Controllers Software Developer's Manual* (8254x). Every operating system of its time has a
//! driver for it.
//!
//! It is a legacy device: it has registers, rings in guest memory, and an interrupt line that stays
//! asserted until the driver has read the cause. It stages frames at the gate, and accesses guest
//! memory through the gate.

mod eeprom;
mod offload;
mod phy;
mod receive;
mod registers;
mod ring;
mod state;
mod statistics;
#[cfg(test)]
mod tests;
mod transmit;

use io_gate::{Gate, Identity, LineState, Port, RegisterDevice, SavedState, StateError};

use eeprom::Eeprom;
use phy::Phy;
use registers::{Registers, reg};
use statistics::Statistics;
use transmit::Transmit;

const IDENTITY: Identity = Identity { kind: "e1000", virtio_id: 0, state_version: 1 };

/// PCI vendor and device number.
const VENDOR_ID: u16 = 0x8086;
const DEVICE_ID: u16 = 0x100e;

/// The port of the network.
const NETWORK: Port = Port(0);
/// Bytes of the virtio-net header in front of each frame at the gate.
const HEADER: usize = 12;

/// CTRL: the bits with an effect.
mod ctrl {
    pub(super) const RESET: u32 = 1 << 26;
    pub(super) const TAGS: u32 = 1 << 30;
    pub(super) const PHY_RESET: u32 = 1 << 31;
}

/// STATUS: full duplex, link up, 1000 Mb/s, as detected; a 33 MHz bus of 32 bits.
const STATUS: u32 = 0x0000_0283;

/// Interrupt causes.
mod cause {
    pub(super) const TX_DONE: u32 = 1 << 0;
    pub(super) const TX_EMPTY: u32 = 1 << 1;
    pub(super) const LINK: u32 = 1 << 2;
    pub(super) const RX_LOW: u32 = 1 << 4;
    pub(super) const RX_TIMER: u32 = 1 << 7;
    pub(super) const PHY_ACCESS: u32 = 1 << 9;
    pub(super) const ALL: u32 = 0x0001_ffff;
}

/// An 82540EM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct E1000 {
    mac: [u8; 6],
    registers: Registers,
    eeprom: Eeprom,
    phy: Phy,
    statistics: Statistics,
    transmit: Transmit,
    /// The pending interrupt causes (ICR).
    causes: u32,
    /// The causes that may interrupt (IMS).
    mask: u32,
    /// Offset of the register that the I/O window accesses (IOADDR).
    io_address: u32,
}

impl E1000 {
    /// Length of its register window in bytes. The window begins at offset 0.
    pub const WINDOW: u64 = 0x2_0000;
    /// Length of its I/O window in bytes. The window begins at the end of the register window.
    pub const IO_WINDOW: u64 = 0x40;
    /// PCI vendor number.
    pub const VENDOR_ID: u16 = VENDOR_ID;
    /// PCI device number.
    pub const DEVICE_ID: u16 = DEVICE_ID;

    /// A card with this Ethernet address, on port 0.
    #[must_use]
    pub fn new(mac: [u8; 6]) -> Self {
        Self {
            mac,
            registers: Registers::new(mac),
            eeprom: Eeprom::default(),
            phy: Phy::new(),
            statistics: Statistics::new(),
            transmit: Transmit::default(),
            causes: 0,
            mask: 0,
            io_address: 0,
        }
    }

    fn read_register(&mut self, offset: u32) -> u32 {
        if let Some(index) = Statistics::index(offset) {
            return self.statistics.take(index);
        }
        match offset {
            reg::CTRL_DUP => self.registers.get(reg::CTRL),
            reg::STATUS => STATUS,
            reg::EECD => self.eeprom.read_wires(self.mac),
            reg::EERD => self.eeprom.eerd,
            reg::MDIC => self.phy.mdic,
            // A read of the causes clears them.
            reg::ICR => core::mem::take(&mut self.causes),
            reg::ICS => self.causes,
            reg::IMS => self.mask,
            _ => self.registers.get(offset),
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        match offset {
            reg::CTRL | reg::CTRL_DUP => self.write_control(value),
            reg::EECD => self.eeprom.write_wires(value),
            reg::EERD => self.eeprom.write_eerd(self.mac, value),
            reg::MDIC => {
                let caused = self.phy.write_mdic(value);
                self.causes |= if caused.access_done { cause::PHY_ACCESS } else { 0 };
                self.causes |= if caused.link_change { cause::LINK } else { 0 };
            }
            reg::ICR => self.causes &= !value,
            reg::ICS => self.causes |= value & cause::ALL,
            reg::IMS => self.mask |= value & cause::ALL,
            reg::IMC => self.mask &= !value,
            _ => self.registers.put(offset, value),
        }
    }

    fn write_control(&mut self, value: u32) {
        if value & ctrl::RESET != 0 {
            // A reset keeps IOADDR, which belongs to the bus and not to the driver.
            *self = Self { io_address: self.io_address, ..Self::new(self.mac) };
            return;
        }
        if value & ctrl::PHY_RESET != 0 {
            self.phy = Phy::new();
        }
        self.registers.put(reg::CTRL, value);
    }

    /// Finds the register that an access reaches directly, or through the two ports of the I/O
    /// window.
    fn target(&self, offset: u64) -> Target {
        /// IOADDR and IODATA, at the beginning of the I/O window.
        const IO_ADDRESS: u64 = E1000::WINDOW;
        const IO_DATA: u64 = E1000::WINDOW + 4;
        match offset {
            0..Self::WINDOW => Target::Register(offset as u32),
            IO_ADDRESS => Target::IoAddress,
            IO_DATA if u64::from(self.io_address) < Self::WINDOW => {
                Target::Register(self.io_address)
            }
            _ => Target::None,
        }
    }
}

/// The target of an access.
enum Target {
    Register(u32),
    IoAddress,
    None,
}

impl RegisterDevice for E1000 {
    fn identity(&self) -> Identity {
        IDENTITY
    }

    fn read(&mut self, offset: u64, into: &mut [u8], _gate: &mut Gate<'_>) {
        // Registers are 32 bits wide. A narrower access reads a part, and a wider one reads zeros
        // after the register.
        let inside = (offset % 4) as usize;
        let value = match self.target(offset - inside as u64) {
            Target::Register(offset) => self.read_register(offset & !3),
            Target::IoAddress => self.io_address,
            Target::None => 0,
        };
        let bytes = value.to_le_bytes();
        into.fill(0);
        for (to, from) in into.iter_mut().zip(&bytes[inside..]) {
            *to = *from;
        }
    }

    fn write(&mut self, offset: u64, from: &[u8], _gate: &mut Gate<'_>) {
        // Only whole registers can be written.
        let Ok(bytes) = <[u8; 4]>::try_from(from) else { return };
        let value = u32::from_le_bytes(bytes);
        match self.target(offset) {
            Target::Register(offset) => self.write_register(offset, value),
            Target::IoAddress => self.io_address = value,
            Target::None => {}
        }
    }

    fn intake(&mut self, port: Port, data: &[u8], gate: &mut Gate<'_>) -> usize {
        if port == NETWORK { self.receive(data, gate) } else { data.len() }
    }

    fn proceed(&mut self, gate: &mut Gate<'_>) -> bool {
        self.transmit(gate)
    }

    fn line(&mut self) -> LineState {
        LineState::Level(self.causes & self.mask != 0)
    }

    fn reset(&mut self) {
        *self = Self::new(self.mac);
    }

    fn save(&self) -> SavedState {
        self.save_state()
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        *self = Self::restored(state)?;
        Ok(())
    }
}
