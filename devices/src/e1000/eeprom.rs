//! The card's EEPROM (a 93C46: 64 words of 16 bits). Drivers read a word through EERD, or bit by
//! bit through EECD.

/// EECD: the EEPROM's wires, and the bits by which a driver gets access to them.
mod eecd {
    pub(super) const CLOCK: u32 = 1 << 0;
    pub(super) const SELECT: u32 = 1 << 1;
    pub(super) const DATA_IN: u32 = 1 << 2;
    pub(super) const DATA_OUT: u32 = 1 << 3;
    pub(super) const REQUEST: u32 = 1 << 6;
    pub(super) const GRANT: u32 = 1 << 7;
    pub(super) const PRESENT: u32 = 1 << 8;
    /// The bits that a driver may write. The size bit stays clear: 64 words.
    pub(super) const WRITABLE: u32 = CLOCK | SELECT | DATA_IN | REQUEST | 0x30;
}

/// Bits of EERD. The word's address is in bits 8 to 15, and the word in bits 16 to 31.
const EERD_START: u32 = 1 << 0;
const EERD_DONE: u32 = 1 << 4;

/// Bits of a command: one start bit, two of the operation, six of the address.
const COMMAND_BITS: u8 = 9;
const READ: u16 = 0b110;
const WORD_BITS: u8 = 16;

const WORDS: usize = 64;
/// The required sum of all words.
const SUM: u16 = 0xbaba;

/// A word of the content: the Ethernet address, the card's identifiers, and a checksum.
fn word(mac: [u8; 6], index: u8) -> u16 {
    let fixed = |index: u8| match index {
        0..=2 => {
            let at = usize::from(index) * 2;
            u16::from_le_bytes([mac[at], mac[at + 1]])
        }
        // LEDs: the driver chooses their settings.
        0x04 => 0xffff,
        // The signature of a valid image, and the flag that the identifiers below are valid.
        0x0a => 0x4003,
        0x0b | 0x0d => super::DEVICE_ID,
        0x0c | 0x0e => super::VENDOR_ID,
        _ => 0,
    };
    if usize::from(index) == WORDS - 1 {
        return (0..index).fold(SUM, |left, index| left.wrapping_sub(fixed(index)));
    }
    fixed(index)
}

/// The state of the EEPROM's wires.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Eeprom {
    /// EECD as the driver has written it.
    pub(super) wires: u32,
    /// The bits of a command received so far.
    pub(super) command: u16,
    /// Number of received command bits.
    pub(super) received: u8,
    /// Number of bits of the current word that are already sent.
    pub(super) sent: u8,
    /// The value that a read of EERD returns.
    pub(super) eerd: u32,
}

impl Eeprom {
    /// Handles a read of EECD.
    pub(super) fn read_wires(&self, mac: [u8; 6]) -> u32 {
        let granted = if self.wires & eecd::REQUEST == 0 { 0 } else { eecd::GRANT };
        let out = if self.out(mac) { eecd::DATA_OUT } else { 0 };
        self.wires | granted | out | eecd::PRESENT
    }

    /// Handles a write to EECD.
    pub(super) fn write_wires(&mut self, value: u32) {
        let value = value & eecd::WRITABLE;
        let rises = value & !self.wires & eecd::CLOCK != 0;
        self.wires = value;
        if value & eecd::SELECT == 0 {
            (self.command, self.received, self.sent) = (0, 0, 0);
        } else if rises {
            self.clock(value & eecd::DATA_IN != 0);
        }
    }

    fn clock(&mut self, bit: bool) {
        if self.received < COMMAND_BITS {
            // Zeros before the start bit are ignored.
            if self.received > 0 || bit {
                self.command = self.command << 1 | u16::from(bit);
                self.received += 1;
            }
        } else if self.sent < WORD_BITS {
            self.sent += 1;
        } else {
            // After the last bit of a word, the EEPROM continues with the next word.
            self.command = self.command & !0x3f | self.command.wrapping_add(1) & 0x3f;
            self.sent = 1;
        }
    }

    /// The wire from the EEPROM. It is high while idle, which means ready.
    fn out(&self, mac: [u8; 6]) -> bool {
        if self.received < COMMAND_BITS || self.command >> 6 != READ {
            return true;
        }
        // The EEPROM sends a zero before the first bit of a word.
        self.sent > 0 && word(mac, (self.command & 0x3f) as u8) >> (WORD_BITS - self.sent) & 1 == 1
    }

    /// Handles a write to EERD: the word is available at once.
    pub(super) fn write_eerd(&mut self, mac: [u8; 6], value: u32) {
        self.eerd = value & 0xff00;
        if value & EERD_START != 0 {
            let index = (value >> 8) as u8;
            let word = if usize::from(index) < WORDS { word(mac, index) } else { 0xffff };
            self.eerd |= u32::from(word) << 16 | EERD_DONE;
        }
    }

    /// Whether this state can occur: a saved state with another one is refused.
    pub(super) fn is_possible(&self) -> bool {
        self.wires & !eecd::WRITABLE == 0
            && self.received <= COMMAND_BITS
            && self.sent <= WORD_BITS
            && self.command < 1 << COMMAND_BITS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

    /// Reads a word as drivers do: sends the command bit by bit, then receives the word.
    fn read(eeprom: &mut Eeprom, index: u8) -> u16 {
        let select = eecd::REQUEST | eecd::SELECT;
        eeprom.write_wires(eecd::REQUEST);
        assert!(eeprom.read_wires(MAC) & eecd::GRANT != 0);
        eeprom.write_wires(select);
        let command = READ << 6 | u16::from(index);
        for bit in (0..COMMAND_BITS).rev() {
            let data = if command >> bit & 1 == 1 { eecd::DATA_IN } else { 0 };
            eeprom.write_wires(select | data);
            eeprom.write_wires(select | data | eecd::CLOCK);
            eeprom.write_wires(select | data);
        }
        let mut word = 0;
        for _ in 0..WORD_BITS {
            eeprom.write_wires(select | eecd::CLOCK);
            word = word << 1 | u16::from(eeprom.read_wires(MAC) & eecd::DATA_OUT != 0);
            eeprom.write_wires(select);
        }
        assert!(eeprom.is_possible());
        eeprom.write_wires(0);
        word
    }

    #[test]
    fn both_ways_to_read_give_the_same_words_and_these_the_checksum() {
        let mut eeprom = Eeprom::default();
        let mut sum = 0_u16;
        for index in 0..WORDS as u8 {
            let word = read(&mut eeprom, index);
            eeprom.write_eerd(MAC, u32::from(index) << 8 | EERD_START);
            assert_eq!(eeprom.eerd, u32::from(word) << 16 | u32::from(index) << 8 | EERD_DONE);
            sum = sum.wrapping_add(word);
        }
        assert_eq!(sum, SUM);
        assert_eq!(read(&mut eeprom, 0), 0x5452);
        assert_eq!(read(&mut eeprom, 2), 0x5634);
    }
}
