//! An entry of the guest's log on disk, and its place.
//!
//! The layout of the disk: sectors below [`SCRATCH_START`] are never accessed. [`SCRATCH_SECTORS`]
//! sectors from there are scratch, for discard and write-zeroes. The log starts at [`LOG_START`]
//! and wraps. A record's index is the value of `applied` after its operation; the first is 1.
//! Record `k` is in slot `k % capacity`; a slot has [`SLOT_SECTORS`] sectors. The guest writes only
//! the sectors that a record needs: the rest of the slot keeps its old contents.
//!
//! | offset | field |
//! | --- | --- |
//! | 0 | magic `KWLR` |
//! | 4 | version, operation (u8 each), payload length (u16) |
//! | 8 | client (u32), 0 (u32) |
//! | 16 | index |
//! | 24 | seq |
//! | 32 | chain after it |
//! | 40 | boot_id (u64 each) |
//! | 48 | payload, then CRC-32 of all before it, then zeros to the sector's end |

use crate::op::{MAX_PAYLOAD, OpCode};
use crate::wire::{self, CRC_LEN, VERSION, get_u16, get_u32, get_u64, put};
use crate::{FormatError, payload_hash};

const MAGIC: u32 = u32::from_le_bytes(*b"KWLR");
const HEADER_LEN: usize = 48;

/// Size of a sector in bytes: virtio's unit for all block sizes.
pub const SECTOR_LEN: usize = 512;
/// Number of sectors in a slot.
pub const SLOT_SECTORS: u64 = 4;
/// Number of bytes in a slot.
pub const SLOT_LEN: usize = SLOT_SECTORS as usize * SECTOR_LEN;
/// The first scratch sector.
pub const SCRATCH_START: u64 = 64;
/// Number of scratch sectors.
pub const SCRATCH_SECTORS: u64 = 64;
/// The first sector of the log.
pub const LOG_START: u64 = 2048;
const _: () = assert!(SCRATCH_START + SCRATCH_SECTORS <= LOG_START);

/// Maximum number of slots in the log of any disk.
pub const MAX_LOG_CAPACITY: u64 = 1 << 20;

/// Number of records in the log on a disk of `disk_sectors` sectors before it wraps; 0 if the disk
/// is too small.
pub const fn log_capacity(disk_sectors: u64) -> u64 {
    let slots = disk_sectors.saturating_sub(LOG_START) / SLOT_SECTORS;
    if slots > MAX_LOG_CAPACITY { MAX_LOG_CAPACITY } else { slots }
}

/// The first sector of the record with `index` in a log of `capacity` records, which must not be 0.
pub const fn log_sector(index: u64, capacity: u64) -> u64 {
    LOG_START + (index % capacity) * SLOT_SECTORS
}

/// An entry of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Number of applied operations, including this one.
    pub index: u64,
    /// The client.
    pub client: u32,
    /// The client's sequence number of the request.
    pub seq: u64,
    /// The operation, which changes state.
    pub op: OpCode,
    /// The chain after the operation.
    pub chain: u64,
    /// The boot ID of the guest that wrote the record: a log also contains records of earlier
    /// guests.
    pub boot_id: u64,
    /// The appended payload, or key and value ([`crate::op::put_payload`]).
    pub payload: &'a [u8],
}

impl<'a> Record<'a> {
    /// Writes the record to the start of `slot`. Returns the number of bytes to write to disk, a
    /// multiple of [`SECTOR_LEN`].
    ///
    /// # Errors
    /// When the payload is too long, or the operation changes no state.
    pub fn encode(&self, slot: &mut [u8; SLOT_LEN]) -> Result<usize, FormatError> {
        if self.payload.len() > MAX_PAYLOAD {
            return Err(FormatError::Payload(self.payload.len()));
        }
        if !self.op.changes_state() {
            return Err(FormatError::UnknownOp(self.op as u8));
        }
        let end = HEADER_LEN + self.payload.len() + CRC_LEN;
        let padded = end.next_multiple_of(SECTOR_LEN);
        slot[..padded].fill(0);
        put(slot, 0, &MAGIC.to_le_bytes());
        put(slot, 4, &[VERSION, self.op as u8]);
        put(slot, 6, &(self.payload.len() as u16).to_le_bytes());
        put(slot, 8, &self.client.to_le_bytes());
        let numbers = [self.index, self.seq, self.chain, self.boot_id];
        for (place, number) in numbers.iter().enumerate() {
            put(slot, 16 + 8 * place, &number.to_le_bytes());
        }
        put(slot, HEADER_LEN, self.payload);
        wire::seal(&mut slot[..end]);
        Ok(padded)
    }

    /// Parses the record at the start of `slot`, which may be longer than the record.
    ///
    /// # Errors
    /// When the bytes are no record: too few, other marks or fields, or another checksum.
    pub fn decode(slot: &'a [u8]) -> Result<Self, FormatError> {
        wire::at_least(slot, HEADER_LEN + CRC_LEN)?;
        wire::check_head(slot, MAGIC)?;
        let payload_len = usize::from(get_u16(slot, 6));
        if payload_len > MAX_PAYLOAD {
            return Err(FormatError::Payload(payload_len));
        }
        let end = HEADER_LEN + payload_len + CRC_LEN;
        wire::at_least(slot, end)?;
        wire::check(&slot[..end], MAGIC)?;
        if get_u32(slot, 12) != 0 {
            return Err(FormatError::Reserved);
        }
        let op = OpCode::try_from(slot[5])?;
        if !op.changes_state() {
            return Err(FormatError::UnknownOp(slot[5]));
        }
        Ok(Self {
            index: get_u64(slot, 16),
            client: get_u32(slot, 8),
            seq: get_u64(slot, 24),
            op,
            chain: get_u64(slot, 32),
            boot_id: get_u64(slot, 40),
            payload: &slot[HEADER_LEN..HEADER_LEN + payload_len],
        })
    }

    /// Whether this record follows a state with `chain`: the record's own chain must result from
    /// `chain` and its content.
    pub fn follows(&self, chain: u64) -> bool {
        let hash = payload_hash(self.payload);
        self.chain == crate::chain_after(chain, self.client, self.seq, self.op as u8, hash)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{CHAIN_START, Op, Request, op::put_payload};

    fn record(payload: &[u8]) -> Record<'_> {
        Record { index: 5, client: 6, seq: 7, op: OpCode::Append, chain: 8, boot_id: 9, payload }
    }

    #[test]
    fn a_record_survives_the_disk_and_takes_whole_sectors() {
        for (payload, sectors) in
            [(&[1u8; 0][..], 1), (&[2; 460], 1), (&[3; 461], 2), (&[4; MAX_PAYLOAD], 3)]
        {
            let mut slot = [0xee; SLOT_LEN];
            let length = record(payload).encode(&mut slot).unwrap();
            assert_eq!(length, sectors * SECTOR_LEN);
            assert_eq!(Record::decode(&slot), Ok(record(payload)));
            assert_eq!(Record::decode(&slot[..length]), Ok(record(payload)));
        }
    }

    #[test]
    fn every_single_bit_error_is_refused() {
        let mut slot = [0; SLOT_LEN];
        record(b"payload").encode(&mut slot).unwrap();
        for bit in 0..(HEADER_LEN + 7 + CRC_LEN) * 8 {
            slot[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::decode(&slot).is_err(), "bit {bit}");
            slot[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_torn_record_is_refused() {
        let mut old = [0; SLOT_LEN];
        record(&[1; MAX_PAYLOAD]).encode(&mut old).unwrap();
        let mut new = [0; SLOT_LEN];
        record(&[2; MAX_PAYLOAD]).encode(&mut new).unwrap();
        for sectors in 1..3 {
            let mut torn = old;
            torn[..sectors * SECTOR_LEN].copy_from_slice(&new[..sectors * SECTOR_LEN]);
            assert!(matches!(Record::decode(&torn), Err(FormatError::Checksum { .. })));
        }
    }

    #[test]
    fn an_empty_sector_is_no_record() {
        assert!(matches!(Record::decode(&[0; SECTOR_LEN]), Err(FormatError::Magic { .. })));
    }

    #[test]
    fn only_what_changes_state_is_logged() {
        let mut reading = record(b"");
        reading.op = OpCode::Get;
        let refused = reading.encode(&mut [0; SLOT_LEN]);
        assert_eq!(refused, Err(FormatError::UnknownOp(OpCode::Get as u8)));
    }

    #[test]
    fn records_and_requests_make_the_same_chain() {
        let request = Request { client: 6, seq: 7, op: Op::Put { key: 1, value: 2, flush: true } };
        let payload = put_payload(1, 2);
        let mut logged = record(&payload);
        logged.op = OpCode::Put;
        logged.chain = request.chain_after(CHAIN_START);
        assert!(logged.follows(CHAIN_START));
        assert!(!logged.follows(CHAIN_START + 1));
    }

    #[test]
    fn slots_wrap_and_stay_on_the_disk() {
        assert_eq!(log_capacity(0), 0);
        assert_eq!(log_capacity(LOG_START + 3), 0);
        let disk = LOG_START + 10 * SLOT_SECTORS + 1;
        assert_eq!(log_capacity(disk), 10);
        assert_eq!(log_sector(10, 10), log_sector(0, 10));
        assert!((0..30).all(|index| log_sector(index, 10) + SLOT_SECTORS <= disk));
        assert_eq!(log_capacity(u64::MAX), MAX_LOG_CAPACITY);
    }
}
