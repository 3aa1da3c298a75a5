//! A client's datagram.
//!
//! | offset | field |
//! | --- | --- |
//! | 0 | magic `KWRQ` |
//! | 4 | version, operation, flags, 0 (u8 each) |
//! | 8 | client (u32) |
//! | 12 | payload length (u16), 0 (u16) |
//! | 16 | seq (u64) |
//! | 24 | first argument (u64): key, upper half: expected value; pages per second; mark; pages |
//! | 32 | second argument (u64): value, region pages |
//! | 40 | payload, then CRC-32 of all before it |

use crate::op::{FLAG_FLUSH, MAX_PAYLOAD, Op, OpCode};
use crate::wire::{self, CRC_LEN, VERSION, get_u16, get_u32, get_u64, put};
use crate::{FormatError, payload_hash};

const MAGIC: u32 = u32::from_le_bytes(*b"KWRQ");
const HEADER_LEN: usize = 40;

/// Maximum length of a request in bytes: a buffer of this size always suffices for
/// [`Request::encode`].
pub const MAX_REQUEST_LEN: usize = HEADER_LEN + MAX_PAYLOAD + CRC_LEN;

/// A request of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// The client's ID: the guest stores one reply for each client.
    pub client: u32,
    /// The client's sequence number of this request, which only grows. A repetition has the same
    /// number.
    pub seq: u64,
    /// The operation.
    pub op: Op<'a>,
}

impl<'a> Request<'a> {
    /// Writes the request to the start of `out`, and returns its length.
    ///
    /// # Errors
    /// When the payload is too long, or `out` too short.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, FormatError> {
        let (first, second, payload) = arguments(&self.op);
        if payload.len() > MAX_PAYLOAD {
            return Err(FormatError::Payload(payload.len()));
        }
        let length = HEADER_LEN + payload.len() + CRC_LEN;
        wire::at_least(out, length)?;
        let flags = if self.op.wants_flush() { FLAG_FLUSH } else { 0 };
        let message = &mut out[..length];
        message[..HEADER_LEN].fill(0);
        put(message, 0, &MAGIC.to_le_bytes());
        put(message, 4, &[VERSION, self.op.code() as u8, flags]);
        put(message, 8, &self.client.to_le_bytes());
        put(message, 12, &(payload.len() as u16).to_le_bytes());
        put(message, 16, &self.seq.to_le_bytes());
        put(message, 24, &first.to_le_bytes());
        put(message, 32, &second.to_le_bytes());
        put(message, HEADER_LEN, payload);
        wire::seal(message);
        Ok(length)
    }

    /// Parses a request, which must fill `message` exactly.
    ///
    /// # Errors
    /// When the bytes are no request: another length, other marks or fields, or another checksum.
    pub fn decode(message: &'a [u8]) -> Result<Self, FormatError> {
        wire::at_least(message, HEADER_LEN + CRC_LEN)?;
        wire::check_head(message, MAGIC)?;
        let payload_len = usize::from(get_u16(message, 12));
        if payload_len > MAX_PAYLOAD {
            return Err(FormatError::Payload(payload_len));
        }
        let expected = HEADER_LEN + payload_len + CRC_LEN;
        if message.len() != expected {
            let found = message.len();
            return Err(FormatError::Length { expected, found });
        }
        wire::check(message, MAGIC)?;
        if message[7] != 0 || get_u16(message, 14) != 0 {
            return Err(FormatError::Reserved);
        }
        let op = parse_op(message, &message[HEADER_LEN..HEADER_LEN + payload_len])?;
        Ok(Self { client: get_u32(message, 8), seq: get_u64(message, 16), op })
    }

    /// The chain after this request is applied to a state with `chain`.
    pub fn chain_after(&self, chain: u64) -> u64 {
        let hash = self.op.with_log_payload(payload_hash);
        crate::chain_after(chain, self.client, self.seq, self.op.code() as u8, hash)
    }
}

fn arguments<'a>(op: &Op<'a>) -> (u64, u64, &'a [u8]) {
    match *op {
        Op::Append { payload, .. } => (0, 0, payload),
        Op::Put { key, value, .. } => (u64::from(key), value, &[]),
        Op::CompareAndSet { key, expected, value } => {
            (u64::from(key) | u64::from(expected) << 32, u64::from(value), &[])
        }
        Op::Get { key } => (u64::from(key), 0, &[]),
        Op::SetDirty { pages_per_second, region_pages } => {
            (u64::from(pages_per_second), u64::from(region_pages), &[])
        }
        Op::ConsoleMark { number } => (number, 0, &[]),
        Op::Touch { pages, whole } => (u64::from(pages), u64::from(whole), &[]),
        Op::Compute { kib } => (u64::from(kib), 0, &[]),
        Op::Ping | Op::Verify | Op::PowerOff | Op::Reset => (0, 0, &[]),
    }
}

/// Parses the operation. Refuses all bytes that [`arguments`] and the operation's flags would not
/// have written.
fn parse_op<'a>(message: &[u8], payload: &'a [u8]) -> Result<Op<'a>, FormatError> {
    let code = OpCode::try_from(message[5])?;
    let flags = message[6];
    let (first, second) = (get_u64(message, 24), get_u64(message, 32));
    let flush = flags & FLAG_FLUSH != 0;
    let op = match code {
        OpCode::Ping => Op::Ping,
        OpCode::Append => Op::Append { payload, flush },
        OpCode::Put => Op::Put { key: first as u32, value: second, flush },
        OpCode::CompareAndSet => Op::CompareAndSet {
            key: first as u32,
            expected: (first >> 32) as u32,
            value: second as u32,
        },
        OpCode::Get => Op::Get { key: first as u32 },
        OpCode::SetDirty => {
            Op::SetDirty { pages_per_second: first as u32, region_pages: second as u32 }
        }
        OpCode::Verify => Op::Verify,
        OpCode::PowerOff => Op::PowerOff,
        OpCode::Reset => Op::Reset,
        OpCode::ConsoleMark => Op::ConsoleMark { number: first },
        OpCode::Touch => Op::Touch { pages: first as u32, whole: second == 1 },
        OpCode::Compute => Op::Compute { kib: first as u32 },
    };
    if flags & !FLAG_FLUSH != 0 || flush != op.wants_flush() {
        return Err(FormatError::UnknownFlags(flags));
    }
    if !payload.is_empty() && code != OpCode::Append {
        return Err(FormatError::Payload(payload.len()));
    }
    if arguments(&op) != (first, second, payload) {
        return Err(FormatError::Reserved);
    }
    Ok(op)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ALL: [Op<'static>; 15] = [
        Op::Ping,
        Op::Append { payload: b"", flush: false },
        Op::Append { payload: &[7; MAX_PAYLOAD], flush: true },
        Op::Put { key: u32::MAX, value: u64::MAX, flush: true },
        Op::Get { key: 9 },
        Op::SetDirty { pages_per_second: 1000, region_pages: 64 },
        Op::Verify,
        Op::PowerOff,
        Op::Reset,
        Op::ConsoleMark { number: u64::MAX },
        Op::Put { key: 0, value: 0, flush: false },
        Op::Touch { pages: u32::MAX, whole: true },
        Op::Touch { pages: 1, whole: false },
        Op::Compute { kib: u32::MAX },
        Op::CompareAndSet { key: 1, expected: u32::MAX, value: 2 },
    ];

    #[test]
    fn every_operation_survives_the_wire() {
        for op in ALL {
            let request = Request { client: 3, seq: 1 << 40, op };
            let mut bytes = [0xaa; MAX_REQUEST_LEN];
            let length = request.encode(&mut bytes).unwrap();
            assert_eq!(Request::decode(&bytes[..length]), Ok(request));
        }
    }

    #[test]
    fn every_single_bit_error_is_refused() {
        let request = Request { client: 3, seq: 4, op: ALL[1] };
        let mut bytes = [0; MAX_REQUEST_LEN];
        let length = request.encode(&mut bytes).unwrap();
        for bit in 0..length * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Request::decode(&bytes[..length]).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn another_length_is_refused() {
        let request = Request { client: 3, seq: 4, op: ALL[2] };
        let mut bytes = [0; MAX_REQUEST_LEN + 1];
        let length = request.encode(&mut bytes).unwrap();
        assert!(Request::decode(&bytes[..length + 1]).is_err());
        for shorter in 0..length {
            assert!(Request::decode(&bytes[..shorter]).is_err());
        }
    }

    #[test]
    fn too_long_a_payload_is_refused() {
        let op = Op::Append { payload: &[0; MAX_PAYLOAD + 1], flush: false };
        let request = Request { client: 1, seq: 1, op };
        let result = request.encode(&mut [0; 2 * MAX_PAYLOAD]);
        assert_eq!(result, Err(FormatError::Payload(MAX_PAYLOAD + 1)));
    }

    #[test]
    fn unused_arguments_and_flags_are_refused() {
        let request = Request { client: 1, seq: 1, op: Op::Ping };
        for (at, expected) in [
            (6, FormatError::UnknownFlags(1)),
            (7, FormatError::Reserved),
            (14, FormatError::Reserved),
            (24, FormatError::Reserved),
            (32, FormatError::Reserved),
        ] {
            let mut bytes = [0; MAX_REQUEST_LEN];
            let length = request.encode(&mut bytes).unwrap();
            bytes[at] = 1;
            wire::seal(&mut bytes[..length]);
            assert_eq!(Request::decode(&bytes[..length]), Err(expected));
        }
    }
}
