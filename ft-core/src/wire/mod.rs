//! The wire: frames of a fixed header and a body, with limits on every length.
//!
//! ```text
//!  0      4        6       8            12        16       24      32         40
//!  | KMRI | version | kind | body length | check   | epoch  | term  | checksum | body ...
//! ```
//!
//! Little-endian. The checksum is XXH3-64 of the body, seeded with the XXH3-64 of the 32 bytes
//! before it; the check is the low half of the XXH3-64 of the header's other fields before the
//! checksum, so that a length is believed before its body is there. The layout of the header, and the kinds `Hello` and `Refuse`, are the same in every
//! version, so that releases that do not fit can tell each other so.

mod decoder;
mod header;
mod message;
#[cfg(test)]
mod tests;

pub use decoder::Decoder;
pub use header::{HEADER_LEN, Header, Kind, MAGIC, PROTOCOL, WireError};
pub use message::{
    ByeReason, Data, End, EpochDigest, Frame, Hashes, Heartbeat, Message, Outgoing, Verified,
};
