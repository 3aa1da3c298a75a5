//! The card's registers (8254x manual, section 13): their offsets, and the registers that only
//! store what the driver writes.

/// Offsets in the register window.
pub(super) mod reg {
    pub(in super::super) const CTRL: u32 = 0x0000;
    pub(in super::super) const CTRL_DUP: u32 = 0x0004;
    pub(in super::super) const STATUS: u32 = 0x0008;
    pub(in super::super) const EECD: u32 = 0x0010;
    pub(in super::super) const EERD: u32 = 0x0014;
    pub(in super::super) const CTRL_EXT: u32 = 0x0018;
    pub(in super::super) const FLA: u32 = 0x001c;
    pub(in super::super) const MDIC: u32 = 0x0020;
    pub(in super::super) const FCAL: u32 = 0x0028;
    pub(in super::super) const FCAH: u32 = 0x002c;
    pub(in super::super) const FCT: u32 = 0x0030;
    pub(in super::super) const VET: u32 = 0x0038;
    pub(in super::super) const ICR: u32 = 0x00c0;
    pub(in super::super) const ITR: u32 = 0x00c4;
    pub(in super::super) const ICS: u32 = 0x00c8;
    pub(in super::super) const IMS: u32 = 0x00d0;
    pub(in super::super) const IMC: u32 = 0x00d8;
    pub(in super::super) const RCTL: u32 = 0x0100;
    pub(in super::super) const FCTTV: u32 = 0x0170;
    pub(in super::super) const TXCW: u32 = 0x0178;
    pub(in super::super) const TCTL: u32 = 0x0400;
    pub(in super::super) const TIPG: u32 = 0x0410;
    pub(in super::super) const AIT: u32 = 0x0458;
    pub(in super::super) const LEDCTL: u32 = 0x0e00;
    pub(in super::super) const PBA: u32 = 0x1000;
    pub(in super::super) const FCRTL: u32 = 0x2160;
    pub(in super::super) const FCRTH: u32 = 0x2168;
    pub(in super::super) const RDBAL: u32 = 0x2800;
    pub(in super::super) const RDBAH: u32 = 0x2804;
    pub(in super::super) const RDLEN: u32 = 0x2808;
    pub(in super::super) const RDH: u32 = 0x2810;
    pub(in super::super) const RDT: u32 = 0x2818;
    pub(in super::super) const RDTR: u32 = 0x2820;
    pub(in super::super) const RXDCTL: u32 = 0x2828;
    pub(in super::super) const RADV: u32 = 0x282c;
    pub(in super::super) const RSRPD: u32 = 0x2c00;
    pub(in super::super) const TXDMAC: u32 = 0x3000;
    pub(in super::super) const TDBAL: u32 = 0x3800;
    pub(in super::super) const TDBAH: u32 = 0x3804;
    pub(in super::super) const TDLEN: u32 = 0x3808;
    pub(in super::super) const TDH: u32 = 0x3810;
    pub(in super::super) const TDT: u32 = 0x3818;
    pub(in super::super) const TIDV: u32 = 0x3820;
    pub(in super::super) const TXDCTL: u32 = 0x3828;
    pub(in super::super) const TADV: u32 = 0x382c;
    pub(in super::super) const TSPMT: u32 = 0x3830;
    pub(in super::super) const STATISTICS: u32 = 0x4000;
    pub(in super::super) const RXCSUM: u32 = 0x5000;
    pub(in super::super) const MTA: u32 = 0x5200;
    pub(in super::super) const RA: u32 = 0x5400;
    pub(in super::super) const VFTA: u32 = 0x5600;
    pub(in super::super) const WUC: u32 = 0x5800;
    pub(in super::super) const WUFC: u32 = 0x5808;
    pub(in super::super) const MANC: u32 = 0x5820;
}

/// One plain register: its offset, its value after a reset, and the bits that can be written.
struct Plain(u32, u32, u32);

const ALL: u32 = u32::MAX;
/// A ring's length: a multiple of 128 bytes, up to 1 MiB.
const RING_LEN: u32 = 0x000f_ff80;
/// A ring's head or tail.
const RING_INDEX: u32 = 0xffff;

/// Registers that only store what is written, by offset.
const PLAIN: [Plain; 41] = [
    // Full duplex, automatic speed detection, 1000 Mb/s.
    Plain(reg::CTRL, 0x0000_0a01, !0x8400_0000),
    Plain(reg::CTRL_EXT, 0, ALL),
    Plain(reg::FLA, 0, ALL),
    Plain(reg::FCAL, 0, ALL),
    Plain(reg::FCAH, 0, 0xffff),
    Plain(reg::FCT, 0, 0xffff),
    Plain(reg::VET, 0x8100, 0xffff),
    Plain(reg::ITR, 0, 0xffff),
    Plain(reg::RCTL, 0, ALL),
    Plain(reg::FCTTV, 0, 0xffff),
    Plain(reg::TXCW, 0, ALL),
    Plain(reg::TCTL, 0, ALL),
    Plain(reg::TIPG, 0x0060_2006, ALL),
    Plain(reg::AIT, 0, 0xffff),
    Plain(reg::LEDCTL, 0x0706_8302, ALL),
    // 48 KiB of the packet buffer for receiving, 16 KiB for sending.
    Plain(reg::PBA, 0x0010_0030, 0xffff),
    Plain(reg::FCRTL, 0, 0x8000_fff8),
    Plain(reg::FCRTH, 0, 0xfff8),
    Plain(reg::RDBAL, 0, !0xf),
    Plain(reg::RDBAH, 0, ALL),
    Plain(reg::RDLEN, 0, RING_LEN),
    Plain(reg::RDH, 0, RING_INDEX),
    Plain(reg::RDT, 0, RING_INDEX),
    Plain(reg::RDTR, 0, 0xffff),
    Plain(reg::RXDCTL, 0, ALL),
    Plain(reg::RADV, 0, 0xffff),
    Plain(reg::RSRPD, 0, 0xfff),
    Plain(reg::TXDMAC, 1, 1),
    Plain(reg::TDBAL, 0, !0xf),
    Plain(reg::TDBAH, 0, ALL),
    Plain(reg::TDLEN, 0, RING_LEN),
    Plain(reg::TDH, 0, RING_INDEX),
    Plain(reg::TDT, 0, RING_INDEX),
    Plain(reg::TIDV, 0, 0xffff),
    Plain(reg::TXDCTL, 0, ALL),
    Plain(reg::TADV, 0, 0xffff),
    Plain(reg::TSPMT, 0, ALL),
    Plain(reg::RXCSUM, 0, 0x7ff),
    Plain(reg::WUC, 0, 0xf),
    Plain(reg::WUFC, 0, 0x000f_ffff),
    Plain(reg::MANC, 0, ALL),
];

/// Words of the multicast hash table and of the VLAN table.
const TABLE: usize = 128;
/// Words of the address table: 16 pairs.
const ADDRESSES: usize = 32;
/// Words of all plain registers and tables.
pub(super) const WORDS: usize = PLAIN.len() + TABLE + ADDRESSES + TABLE;
/// RAH: the address is valid.
pub(super) const ADDRESS_VALID: u32 = 1 << 31;

/// The plain registers and the filter tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Registers {
    plain: [u32; PLAIN.len()],
    /// Multicast hashes that the receiver accepts, one bit each.
    pub(super) mta: [u32; TABLE],
    /// Addresses: low half, high half and valid bit.
    pub(super) ra: [u32; ADDRESSES],
    /// VLANs that the receiver accepts, one bit each.
    pub(super) vfta: [u32; TABLE],
}

impl Registers {
    /// The registers after a reset. The first address is the card's own.
    pub(super) fn new(mac: [u8; 6]) -> Self {
        let mut ra = [0; ADDRESSES];
        ra[0] = u32::from_le_bytes([mac[0], mac[1], mac[2], mac[3]]);
        ra[1] = u32::from(u16::from_le_bytes([mac[4], mac[5]])) | ADDRESS_VALID;
        Self { plain: PLAIN.map(|Plain(_, value, _)| value), mta: [0; TABLE], ra, vfta: [0; TABLE] }
    }

    /// The value of a plain register or of a table word; 0 for anything else.
    pub(super) fn get(&self, offset: u32) -> u32 {
        match find(offset) {
            Some(index) => self.plain[index],
            None => self.table(offset).map_or(0, |(table, index)| table[index]),
        }
    }

    /// Writes a plain register or a table word, as the driver does.
    pub(super) fn put(&mut self, offset: u32, value: u32) {
        if let Some(index) = find(offset) {
            self.plain[index] = value & PLAIN[index].2;
        } else if let Some((table, index)) = self.table_mut(offset) {
            table[index] = value;
        }
    }

    fn table(&self, offset: u32) -> Option<(&[u32], usize)> {
        let tables: [(u32, &[u32]); 3] =
            [(reg::MTA, &self.mta), (reg::RA, &self.ra), (reg::VFTA, &self.vfta)];
        tables.into_iter().find_map(|(base, table)| {
            let index = index_from(base, offset)?;
            (index < table.len()).then_some((table, index))
        })
    }

    fn table_mut(&mut self, offset: u32) -> Option<(&mut [u32], usize)> {
        let tables: [(u32, &mut [u32]); 3] =
            [(reg::MTA, &mut self.mta), (reg::RA, &mut self.ra), (reg::VFTA, &mut self.vfta)];
        tables.into_iter().find_map(|(base, table)| {
            let index = index_from(base, offset)?;
            (index < table.len()).then_some((table, index))
        })
    }

    /// All values, in the order of the saved state.
    pub(super) fn words(&self) -> [u32; WORDS] {
        let all = self.plain.iter().chain(&self.mta).chain(&self.ra).chain(&self.vfta);
        let mut words = [0; WORDS];
        words.iter_mut().zip(all).for_each(|(to, from)| *to = *from);
        words
    }

    /// Restores the values of [`words`](Self::words). Returns whether they are valid.
    #[must_use]
    pub(super) fn set_words(&mut self, words: &[u32; WORDS]) -> bool {
        let all = self.plain.iter_mut().chain(&mut self.mta).chain(&mut self.ra);
        all.chain(&mut self.vfta).zip(words).for_each(|(to, from)| *to = *from);
        // A valid state has no bits but those that a driver can set and those of the reset values.
        let known = PLAIN.iter().zip(&self.plain);
        known.into_iter().all(|(Plain(_, reset, mask), value)| value & !(mask | reset) == 0)
    }
}

fn find(offset: u32) -> Option<usize> {
    PLAIN.binary_search_by_key(&offset, |Plain(offset, ..)| *offset).ok()
}

fn index_from(base: u32, offset: u32) -> Option<usize> {
    let distance = offset.checked_sub(base)?;
    distance.is_multiple_of(4).then_some((distance / 4) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_registers_are_in_order() {
        assert!(PLAIN.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn registers_keep_what_can_be_written() {
        let mut registers = Registers::new([1, 2, 3, 4, 5, 6]);
        registers.put(reg::RDLEN, ALL);
        assert_eq!(registers.get(reg::RDLEN), RING_LEN);
        registers.put(reg::MTA + 508, 7);
        assert_eq!((registers.get(reg::MTA + 508), registers.get(0x5800 + 4)), (7, 0));
        assert_eq!(
            (registers.get(reg::RA), registers.get(reg::RA + 4)),
            (0x0403_0201, 0x8000_0605)
        );
        registers.put(0x1_fffc, 1);
        let mut words = registers.words();
        let mut other = Registers::new([0; 6]);
        assert!(other.set_words(&words));
        assert_eq!(other, registers);
        // CTRL's reset bit clears itself.
        words[0] |= 1 << 26;
        assert!(!other.set_words(&words));
    }
}
