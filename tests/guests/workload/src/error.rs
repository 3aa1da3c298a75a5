//! The reasons for which bytes are not a valid message, record or page of this crate.

use core::fmt;

/// The reason for which bytes were refused, or could not be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FormatError {
    /// The length is wrong for the format.
    Length {
        /// The length that the format (and its length field) requires.
        expected: usize,
        /// The length that was found.
        found: usize,
    },
    /// The first four bytes belong to another format.
    Magic {
        /// The magic number of the format.
        expected: u32,
        /// The number that was found.
        found: u32,
    },
    /// The bytes were written by another version of this crate.
    Version {
        /// The supported version.
        expected: u8,
        /// The version that was found.
        found: u8,
    },
    /// The checksum does not match the bytes.
    Checksum {
        /// The checksum computed over the bytes.
        expected: u32,
        /// The checksum in the bytes.
        found: u32,
    },
    /// An operation code that does not exist, or is not allowed here.
    UnknownOp(u8),
    /// A status code that does not exist.
    UnknownStatus(u8),
    /// A flag that does not exist.
    UnknownFlags(u8),
    /// A payload that is longer than [`crate::MAX_PAYLOAD`], or not allowed here.
    Payload(usize),
    /// A reserved field or an unused argument is not zero.
    Reserved,
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Length { expected, found } => {
                write!(f, "expected {expected} bytes, found {found}")
            }
            Self::Magic { expected, found } => {
                write!(f, "expected magic {expected:#010x}, found {found:#010x}")
            }
            Self::Version { expected, found } => {
                write!(f, "expected format version {expected}, found {found}")
            }
            Self::Checksum { expected, found } => {
                write!(f, "expected checksum {expected:#010x}, found {found:#010x}")
            }
            Self::UnknownOp(code) => write!(f, "unknown operation code {code}"),
            Self::UnknownStatus(code) => write!(f, "unknown status code {code}"),
            Self::UnknownFlags(flags) => write!(f, "unknown flags {flags:#04x}"),
            Self::Payload(length) => write!(f, "a payload of {length} bytes does not fit here"),
            Self::Reserved => write!(f, "a reserved field is not zero"),
        }
    }
}

impl core::error::Error for FormatError {}
