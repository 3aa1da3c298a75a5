//! Little-endian fields at fixed offsets, and the envelope of all formats: magic number first,
//! CRC-32 last.

use crate::{FormatError, crc::crc32};

/// The version of all formats in this crate.
pub(crate) const VERSION: u8 = 1;

/// Length of the checksum at the end, in bytes.
pub(crate) const CRC_LEN: usize = 4;

pub(crate) fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

pub(crate) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

pub(crate) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

pub(crate) fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

/// Fails if the buffer is shorter than `expected`.
pub(crate) fn at_least(bytes: &[u8], expected: usize) -> Result<(), FormatError> {
    if bytes.len() < expected {
        let found = bytes.len();
        return Err(FormatError::Length { expected, found });
    }
    Ok(())
}

/// Writes the checksum of all preceding bytes at the end of `message`.
pub(crate) fn seal(message: &mut [u8]) {
    let end = message.len() - CRC_LEN;
    let crc = crc32(&message[..end]);
    put(message, end, &crc.to_le_bytes());
}

/// Checks magic number, version and checksum of `message`, which must have its full length.
pub(crate) fn check(message: &[u8], magic: u32) -> Result<(), FormatError> {
    check_head(message, magic)?;
    let end = message.len() - CRC_LEN;
    let (expected, found) = (crc32(&message[..end]), get_u32(message, end));
    if expected != found {
        return Err(FormatError::Checksum { expected, found });
    }
    Ok(())
}

/// Checks magic number and version before a length field is used.
pub(crate) fn check_head(message: &[u8], magic: u32) -> Result<(), FormatError> {
    let found = get_u32(message, 0);
    if found != magic {
        return Err(FormatError::Magic { expected: magic, found });
    }
    if message[4] != VERSION {
        return Err(FormatError::Version { expected: VERSION, found: message[4] });
    }
    Ok(())
}
