//! The guest's datagram.
//!
//! | offset | field |
//! | --- | --- |
//! | 0 | magic `KWRP` |
//! | 4 | version, operation, status, 0 (u8 each) |
//! | 8 | client (u32), 0 (u32) |
//! | 16 | seq |
//! | 24 | applied |
//! | 32 | chain |
//! | 40 | clock_ns |
//! | 48 | dirty_pages |
//! | 56 | faults |
//! | 64 | value |
//! | 72 | boot_id (u64 each) |
//! | 80 | CRC-32 of all before it |

use crate::wire::{self, CRC_LEN, VERSION, get_u32, get_u64, put};
use crate::{FormatError, OpCode};

const MAGIC: u32 = u32::from_le_bytes(*b"KWRP");
const HEADER_LEN: usize = 80;

/// Length of each reply in bytes.
pub const REPLY_LEN: usize = HEADER_LEN + CRC_LEN;

/// The result of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Status {
    /// The operation was performed.
    Ok = 0,
    /// The key has no value.
    NotFound = 1,
    /// The client has already sent a greater `seq`. The guest did nothing.
    Stale = 2,
    /// The disk reported an error. The operation was not applied.
    DiskError = 3,
    /// The guest has no disk for its log. The operation was not applied.
    NoDisk = 4,
    /// The table has no room for a further key. The operation was not applied.
    Full = 5,
    /// The guest has no room for a further client. It did nothing.
    TooManyClients = 6,
}

impl TryFrom<u8> for Status {
    type Error = FormatError;

    fn try_from(code: u8) -> Result<Self, FormatError> {
        Ok(match code {
            0 => Self::Ok,
            1 => Self::NotFound,
            2 => Self::Stale,
            3 => Self::DiskError,
            4 => Self::NoDisk,
            5 => Self::Full,
            6 => Self::TooManyClients,
            _ => return Err(FormatError::UnknownStatus(code)),
        })
    }
}

/// A reply. `applied` and `chain` are the values right after the operation if it changed state,
/// else the current values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// The client of the request.
    pub client: u32,
    /// The client's sequence number of the request.
    pub seq: u64,
    /// The operation of the request.
    pub op: OpCode,
    /// The result.
    pub status: Status,
    /// Number of state-changing operations of all clients that were applied.
    pub applied: u64,
    /// The hash chain over these operations ([`crate::chain_after`], from [`crate::CHAIN_START`]).
    pub chain: u64,
    /// The guest's monotonic clock, in nanoseconds.
    pub clock_ns: u64,
    /// Number of pages that the guest has dirtied in the background.
    pub dirty_pages: u64,
    /// Number of faults that the guest has found in itself: a clock that stepped back; a page, a
    /// table entry or a record that is not as written.
    pub faults: u64,
    /// The operation's result; see [`crate::Op`].
    pub value: u64,
    /// A number that is chosen when the guest starts. Another number means that the guest was
    /// started again.
    pub boot_id: u64,
}

impl Reply {
    /// The reply's bytes.
    pub fn encode(&self) -> [u8; REPLY_LEN] {
        let mut message = [0; REPLY_LEN];
        put(&mut message, 0, &MAGIC.to_le_bytes());
        put(&mut message, 4, &[VERSION, self.op as u8, self.status as u8]);
        put(&mut message, 8, &self.client.to_le_bytes());
        let numbers = [
            self.seq,
            self.applied,
            self.chain,
            self.clock_ns,
            self.dirty_pages,
            self.faults,
            self.value,
            self.boot_id,
        ];
        for (index, number) in numbers.iter().enumerate() {
            put(&mut message, 16 + 8 * index, &number.to_le_bytes());
        }
        wire::seal(&mut message);
        message
    }

    /// Parses a reply, which must fill `message` exactly.
    ///
    /// # Errors
    /// When the bytes are no reply: another length, other marks or fields, or another checksum.
    pub fn decode(message: &[u8]) -> Result<Self, FormatError> {
        if message.len() != REPLY_LEN {
            return Err(FormatError::Length { expected: REPLY_LEN, found: message.len() });
        }
        wire::check(message, MAGIC)?;
        if message[7] != 0 || get_u32(message, 12) != 0 {
            return Err(FormatError::Reserved);
        }
        Ok(Self {
            client: get_u32(message, 8),
            seq: get_u64(message, 16),
            op: OpCode::try_from(message[5])?,
            status: Status::try_from(message[6])?,
            applied: get_u64(message, 24),
            chain: get_u64(message, 32),
            clock_ns: get_u64(message, 40),
            dirty_pages: get_u64(message, 48),
            faults: get_u64(message, 56),
            value: get_u64(message, 64),
            boot_id: get_u64(message, 72),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLY: Reply = Reply {
        client: 1,
        seq: 2,
        op: OpCode::Put,
        status: Status::Full,
        applied: 3,
        chain: 4,
        clock_ns: 5,
        dirty_pages: 6,
        faults: 7,
        value: 8,
        boot_id: 9,
    };

    #[test]
    fn a_reply_survives_the_wire() {
        assert_eq!(Reply::decode(&REPLY.encode()), Ok(REPLY));
    }

    #[test]
    fn every_single_bit_error_is_refused() {
        let bytes = REPLY.encode();
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Reply::decode(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn another_length_is_refused() {
        let bytes = REPLY.encode();
        assert!(Reply::decode(&bytes[..REPLY_LEN - 1]).is_err());
    }
}
