//! The header of a frame, its checksum, and the limits on the length of each kind.

use alloc::vec::Vec;

use io_gate::host::{Epoch, Term};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// The first bytes of every frame.
pub const MAGIC: [u8; 4] = *b"KMRI";

/// The protocol version of this release.
pub const PROTOCOL: u16 = 9;

/// Size of a header in bytes.
pub const HEADER_LEN: usize = 40;

/// Epochs and terms below this can be counted up without overflow.
const MAX_NUMBER: u64 = 1 << 62;

/// Offset of the checksum. It covers the bytes before it.
const CHECKSUM_AT: usize = 32;

/// Offset of the header's own check.
const CHECK_AT: usize = 12;

const KIB: u32 = 1024;

/// The kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Kind {
    /// The primary's description of itself.
    Hello = 1,
    /// The standby accepts, and describes itself.
    Welcome = 2,
    /// The sender does not continue, and says why.
    Refuse = 3,
    /// Pages sent while the guest runs, before the first checkpoint.
    Bulk = 4,
    /// Pages of a checkpoint.
    Pages = 5,
    /// The state of the machine other than its memory.
    State = 6,
    /// A checkpoint is whole.
    End = 7,
    /// A checkpoint is acknowledged.
    Ack = 8,
    /// The standby has compared its hashes.
    Verified = 9,
    /// The sender is alive.
    Heartbeat = 10,
    /// The reply to a heartbeat.
    HeartbeatReply = 11,
    /// The sender leaves intentionally.
    Bye = 12,
    /// Bytes of the images that the guest boots.
    Image = 13,
    /// Whether the standby could continue the guest.
    Readiness = 14,
}

/// The most that a machine's state takes besides its requests in flight: processors, interrupt
/// controllers, devices.
const REST_OF_STATE: usize = 4 * 1024 * 1024;

// P4, P9: whatever a guest requests, a standby accepts its checkpoint.
const _: () = assert!(
    io_gate::host::MAX_RECORDED + REST_OF_STATE <= Kind::State.max_body() as usize,
    "a full gate does not fit in a State frame"
);

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 14] = [
        Self::Hello,
        Self::Welcome,
        Self::Refuse,
        Self::Bulk,
        Self::Pages,
        Self::State,
        Self::End,
        Self::Ack,
        Self::Verified,
        Self::Heartbeat,
        Self::HeartbeatReply,
        Self::Bye,
        Self::Image,
        Self::Readiness,
    ];

    /// The longest body of this kind. Nothing longer is read, sent or allocated.
    #[must_use]
    pub const fn max_body(self) -> u32 {
        match self {
            Self::Hello | Self::Welcome | Self::Image => 1024 * KIB,
            Self::Bulk | Self::Pages => 4 * 1024 * KIB,
            Self::State => 16 * 1024 * KIB,
            Self::Refuse | Self::Readiness => 64 * KIB,
            Self::Bye => 4 * KIB,
            Self::End | Self::Verified => KIB,
            Self::Heartbeat | Self::HeartbeatReply => 64,
            Self::Ack => 0,
        }
    }

    /// The name for messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hello => "Hello",
            Self::Welcome => "Welcome",
            Self::Refuse => "Refuse",
            Self::Bulk => "Bulk",
            Self::Pages => "Pages",
            Self::State => "State",
            Self::End => "End",
            Self::Ack => "Ack",
            Self::Verified => "Verified",
            Self::Heartbeat => "Heartbeat",
            Self::HeartbeatReply => "HeartbeatReply",
            Self::Bye => "Bye",
            Self::Image => "Image",
            Self::Readiness => "Readiness",
        }
    }

    fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u16 == number)
    }
}

/// The received bytes violate the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes are not a frame.
    #[error(
        "a frame begins with {MAGIC:02x?} (\"KMRI\"), found {found:02x?}: check that the other end of the link is a \
         kemari of this virtual machine"
    )]
    Magic {
        /// The bytes found.
        found: [u8; 4],
    },
    /// The other side has another release.
    #[error(
        "protocol: this side speaks version {PROTOCOL}, the other {found}: run the same release on both hosts"
    )]
    Version {
        /// The other side's version.
        found: u16,
    },
    /// A kind that this version does not have.
    #[error(
        "frame kind {found} is unknown in protocol version {PROTOCOL}: run the same release on both hosts"
    )]
    Kind {
        /// The number.
        found: u16,
    },
    /// The header was altered on the way. Its body length is not trusted, since the receiver could
    /// wait for bytes that never come (P7).
    #[error(
        "expected header checksum {expected:08x}, found {found:08x}: the bytes changed in transit"
    )]
    Header {
        /// The check in the header.
        expected: u32,
        /// The check of the received bytes.
        found: u32,
    },
    /// An epoch or term that is beyond what a machine can reach by counting.
    #[error("epoch {epoch}, term {term}: expected numbers below {MAX_NUMBER}")]
    Number {
        /// The epoch.
        epoch: u64,
        /// The term.
        term: u64,
    },
    /// A length above the limit of its kind.
    #[error("{} of {found} bytes: expected at most {} bytes", kind.name(), kind.max_body())]
    TooLong {
        /// The kind.
        kind: Kind,
        /// The length.
        found: u64,
    },
    /// A body whose length differs from the header's.
    #[error("{}: the header announces {expected} bytes, found {found}", kind.name())]
    Length {
        /// The kind.
        kind: Kind,
        /// The length in the header.
        expected: u32,
        /// The length found.
        found: usize,
    },
    /// The bytes were altered on the way.
    #[error("{}: expected checksum {expected:016x}, found {found:016x}: the bytes changed in transit", kind.name())]
    Checksum {
        /// The kind.
        kind: Kind,
        /// The checksum in the header.
        expected: u64,
        /// The checksum of the received bytes.
        found: u64,
    },
    /// A body that does not decode.
    #[error("{} does not decode: {reason}", kind.name())]
    Body {
        /// The kind.
        kind: Kind,
        /// Why.
        reason: &'static str,
    },
}

/// A header whose fields are within their limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The sender's protocol version.
    pub version: u16,
    /// The kind of the body.
    pub kind: Kind,
    /// The length of the body in bytes.
    pub body_len: u32,
    /// The epoch of the frame; 0 if it concerns none.
    pub epoch: Epoch,
    /// The term in which the sender acts.
    pub term: Term,
    /// The checksum of header and body.
    pub checksum: u64,
}

impl Header {
    /// Reads and checks a header. [`verify`](Self::verify) checks the body against it.
    ///
    /// # Errors
    /// When the protocol does not allow the value of a field.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, WireError> {
        let magic: [u8; 4] = field(bytes, 0);
        if magic != MAGIC {
            return Err(WireError::Magic { found: magic });
        }
        let version = u16::from_le_bytes(field(bytes, 4));
        let number = u16::from_le_bytes(field(bytes, 6));
        // A refusal is read from any release: it says what does not fit.
        if version != PROTOCOL && number != Kind::Refuse as u16 {
            return Err(WireError::Version { found: version });
        }
        let kind = Kind::from_number(number).ok_or(WireError::Kind { found: number })?;
        let body_len = u32::from_le_bytes(field(bytes, 8));
        if body_len > kind.max_body() {
            return Err(WireError::TooLong { kind, found: u64::from(body_len) });
        }
        let epoch = u64::from_le_bytes(field(bytes, 16));
        let term = u64::from_le_bytes(field(bytes, 24));
        if epoch >= MAX_NUMBER || term >= MAX_NUMBER {
            return Err(WireError::Number { epoch, term });
        }
        let expected = u32::from_le_bytes(field(bytes, CHECK_AT));
        let found = check(bytes);
        if found != expected {
            return Err(WireError::Header { expected, found });
        }
        Ok(Self {
            version,
            kind,
            body_len,
            epoch: Epoch(epoch),
            term: Term(term),
            checksum: u64::from_le_bytes(field(bytes, CHECKSUM_AT)),
        })
    }

    /// Checks a body against its header: its length and the checksum of both.
    ///
    /// # Errors
    /// When they do not match.
    pub fn verify(&self, body: &[u8]) -> Result<(), WireError> {
        if body.len() != self.body_len as usize {
            return Err(WireError::Length {
                kind: self.kind,
                expected: self.body_len,
                found: body.len(),
            });
        }
        let found = checksum(&self.covered(), body);
        if found != self.checksum {
            return Err(WireError::Checksum { kind: self.kind, expected: self.checksum, found });
        }
        Ok(())
    }

    /// Reserves room for a header at the end of `out`, for [`finish`](Self::finish) to fill.
    pub fn reserve(out: &mut Vec<u8>) -> usize {
        let start = out.len();
        out.resize(start + HEADER_LEN, 0);
        start
    }

    /// Fills the header at `start`. Everything after it in `out` is the body, whose checksum is
    /// computed in place.
    ///
    /// # Errors
    /// When the body is longer than its kind allows.
    pub fn finish(
        out: &mut [u8],
        start: usize,
        kind: Kind,
        epoch: Epoch,
        term: Term,
    ) -> Result<Self, WireError> {
        let (head, body) = out[start..].split_at_mut(HEADER_LEN);
        let body_len = u32::try_from(body.len())
            .ok()
            .filter(|len| *len <= kind.max_body())
            .ok_or(WireError::TooLong { kind, found: body.len() as u64 })?;
        let mut header = Self { version: PROTOCOL, kind, body_len, epoch, term, checksum: 0 };
        let covered = header.covered();
        header.checksum = checksum(&covered, body);
        head[..CHECKSUM_AT].copy_from_slice(&covered);
        head[CHECKSUM_AT..].copy_from_slice(&header.checksum.to_le_bytes());
        Ok(header)
    }

    fn covered(&self) -> [u8; CHECKSUM_AT] {
        let mut bytes = [0; CHECKSUM_AT];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&self.version.to_le_bytes());
        bytes[6..8].copy_from_slice(&(self.kind as u16).to_le_bytes());
        bytes[8..12].copy_from_slice(&self.body_len.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.epoch.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.term.0.to_le_bytes());
        let check = check(&bytes);
        bytes[CHECK_AT..CHECK_AT + 4].copy_from_slice(&check.to_le_bytes());
        bytes
    }
}

fn field<const N: usize>(bytes: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

/// The low half of the XXH3-64 of the other fields, without the checksum.
fn check(header: &[u8]) -> u32 {
    let mut fields = [0; CHECKSUM_AT - 4];
    fields[..CHECK_AT].copy_from_slice(&header[..CHECK_AT]);
    fields[CHECK_AT..].copy_from_slice(&header[CHECK_AT + 4..CHECKSUM_AT]);
    xxh3_64(&fields) as u32
}

fn checksum(covered: &[u8; CHECKSUM_AT], body: &[u8]) -> u64 {
    xxh3_64_with_seed(body, xxh3_64(covered))
}
