//! The card's PHY (a Marvell 88E1011). Drivers access it through the MDIC register. Its link is
//! always up.

/// MDIC: the fields of a request and of its answer.
mod mdic {
    pub(super) const DATA: u32 = 0xffff;
    pub(super) const REGISTER_SHIFT: u32 = 16;
    pub(super) const ADDRESS_SHIFT: u32 = 21;
    pub(super) const OPERATION: u32 = 3 << 26;
    pub(super) const WRITE: u32 = 1 << 26;
    pub(super) const READ: u32 = 2 << 26;
    pub(super) const READY: u32 = 1 << 28;
    pub(super) const INTERRUPT: u32 = 1 << 29;
    pub(super) const ERROR: u32 = 1 << 30;
}

/// The PHY's address on the management bus.
const ADDRESS: u32 = 1;

const CONTROL: usize = 0;
const CONTROL_RESET: u16 = 1 << 15;
const CONTROL_RESTART: u16 = 1 << 9;

/// Read-only registers: status, identifier, the partner's abilities, the negotiated result.
const READ_ONLY: [usize; 8] = [1, 2, 3, 5, 6, 10, 15, 17];

/// Its registers after a reset.
fn power_on() -> [u16; 32] {
    let mut registers = [0; 32];
    // Autonegotiation, full duplex, 1000 Mb/s.
    registers[CONTROL] = 0x1140;
    // All speeds, autonegotiation complete, link up.
    registers[1] = 0x796d;
    registers[2] = 0x0141;
    registers[3] = 0x0c20;
    // Its abilities and the partner's: everything, with pause frames.
    registers[4] = 0x0de1;
    registers[5] = 0xcde1;
    registers[6] = 0x000f;
    registers[9] = 0x0e00;
    registers[10] = 0x7c00;
    registers[15] = 0x3000;
    registers[16] = 0x0068;
    // 1000 Mb/s, full duplex, resolved, link up.
    registers[17] = 0xac08;
    registers[20] = 0x0d60;
    registers
}

/// The PHY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Phy {
    pub(super) registers: [u16; 32],
    /// The value that a read of MDIC returns.
    pub(super) mdic: u32,
}

/// The events that an access has caused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caused {
    /// The access is done, and the driver requested an interrupt.
    pub(super) access_done: bool,
    /// The link was negotiated again.
    pub(super) link_change: bool,
}

impl Phy {
    pub(super) fn new() -> Self {
        Self { registers: power_on(), mdic: mdic::READY }
    }

    /// Handles a write to MDIC: the access is done at once.
    pub(super) fn write_mdic(&mut self, value: u32) -> Caused {
        let register = (value >> mdic::REGISTER_SHIFT & 31) as usize;
        let mut caused = Caused { access_done: value & mdic::INTERRUPT != 0, link_change: false };
        self.mdic = value & !mdic::ERROR | mdic::READY;
        if value >> mdic::ADDRESS_SHIFT & 31 != ADDRESS {
            self.mdic |= mdic::ERROR;
            return caused;
        }
        match value & mdic::OPERATION {
            mdic::READ => {
                self.mdic = self.mdic & !mdic::DATA | u32::from(self.registers[register]);
            }
            mdic::WRITE => caused.link_change = self.write(register, value as u16),
            _ => self.mdic |= mdic::ERROR,
        }
        caused
    }

    fn write(&mut self, register: usize, value: u16) -> bool {
        if READ_ONLY.contains(&register) {
            return false;
        }
        self.registers[register] = value;
        if register != CONTROL {
            return false;
        }
        if value & CONTROL_RESET != 0 {
            self.registers = power_on();
        }
        self.registers[CONTROL] &= !CONTROL_RESTART;
        value & (CONTROL_RESET | CONTROL_RESTART) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(phy: &mut Phy, address: u32, register: u32) -> u32 {
        let asked = mdic::READ | address << mdic::ADDRESS_SHIFT | register << mdic::REGISTER_SHIFT;
        let _ = phy.write_mdic(asked);
        phy.mdic
    }

    fn write(phy: &mut Phy, register: u32, value: u16) -> Caused {
        let asked = mdic::WRITE | ADDRESS << mdic::ADDRESS_SHIFT | u32::from(value);
        phy.write_mdic(asked | register << mdic::REGISTER_SHIFT | mdic::INTERRUPT)
    }

    #[test]
    fn it_is_found_and_its_link_is_up() {
        let mut phy = Phy::new();
        assert_eq!(read(&mut phy, 1, 2) & mdic::DATA, 0x0141);
        assert_eq!(read(&mut phy, 1, 1) & 0x24, 0x24);
        assert_eq!(read(&mut phy, 2, 1) & mdic::ERROR, mdic::ERROR);
    }

    #[test]
    fn a_reset_ends_by_itself_and_identifiers_stay() {
        let mut phy = Phy::new();
        assert_eq!(write(&mut phy, 2, 0), Caused { access_done: true, link_change: false });
        assert!(!write(&mut phy, 16, 0x1234).link_change);
        assert_eq!(phy.registers[16], 0x1234);
        assert!(write(&mut phy, 0, CONTROL_RESTART | 0x1140).link_change);
        assert_eq!((phy.registers[0], phy.registers[16]), (0x1140, 0x1234));
        assert!(write(&mut phy, 0, CONTROL_RESET).link_change);
        assert_eq!(phy, Phy { mdic: phy.mdic, ..Phy::new() });
    }
}
