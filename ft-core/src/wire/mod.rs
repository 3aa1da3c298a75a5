//! The wire format: frames with a fixed header and a body, and a limit for every length.
//!
//! ```text
//!  0      4        6       8            12        16       24      32         40
//!  | KMRI | version | kind | body length | check   | epoch  | term  | checksum | body ...
//! ```
//!
//! All numbers are little-endian. The checksum is XXH3-64 of the body, seeded with the XXH3-64 of
//! the 32 bytes before it. The check is the low half of the XXH3-64 of the header's other fields
//! before the checksum, so that a length can be trusted before the body has arrived.
//! The layout of the header, and the kinds `Hello` and `Refuse`, are the same in every version, so
//! that releases that do not fit can tell each other so.

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
