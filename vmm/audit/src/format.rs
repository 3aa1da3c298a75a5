//! The file format: each file has a header, then records of equal size, each with its checksum.
//!
//! Numbers are little-endian. Checksums are XXH3-64, as on the wire.

use io_gate_host::Op;
use xxhash_rust::xxh3::xxh3_64;

use super::entry::{Entry, Event, Won};
use super::summary::Summary;

/// The first bytes of every file.
const MAGIC: [u8; 8] = *b"KMRAUDIT";
/// The version of the format.
const VERSION: u32 = 1;
/// Length of a file's header in bytes.
pub const HEADER_LEN: usize = 512;
/// Length of a record in bytes.
pub const RECORD_LEN: usize = 64;
/// Length of the checksum, the last field, in bytes.
const CHECK_LEN: usize = 8;
/// Upper bounds of the texts in bytes; longer ones are cut.
const NAME_MAX: usize = 64;
const HOLDER_MAX: usize = 240;
const BOOT_MAX: usize = 40;

/// The command that writes a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// `kemari run`
    Primary,
    /// `kemari standby`, which may have taken over.
    Standby,
}

impl Side {
    /// Its name for messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Standby => "standby",
        }
    }
}

/// A file's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The virtual machine's name.
    pub vm: String,
    /// The host and the process, as in the arbiter's records; no other process has the same text.
    pub holder: String,
    /// The host's boot id: logs with the same id share one CLOCK_MONOTONIC.
    pub boot: String,
    /// The command that writes the log.
    pub side: Side,
    /// The file's number in its log; the first is 0.
    pub number: u64,
    /// The start of the log: CLOCK_REALTIME in nanoseconds.
    pub realtime: u64,
    /// The start of the log: CLOCK_MONOTONIC in nanoseconds.
    pub monotonic: u64,
    /// The summary of the records before this file.
    pub before: Summary,
}

/// The content of a file is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The file is not part of an audit log.
    #[error("expected a file of an audit log, which begins with \"KMRAUDIT\", found other data")]
    Magic,
    /// Another release wrote the file.
    #[error(
        "expected version {VERSION} of the audit log's format, found {0}: use the kemari that wrote it"
    )]
    Version(u32),
    /// A checksum does not match.
    #[error(
        "checksum expected {expected:016x}, found {found:016x}: the bytes have changed since they were written"
    )]
    Checksum {
        /// The checksum in the file.
        expected: u64,
        /// The checksum of the content.
        found: u64,
    },
    /// A field has a value that kemari never writes.
    #[error("{what}: found {found}, a value that kemari never writes")]
    Value {
        /// The field.
        what: &'static str,
        /// The value.
        found: u64,
    },
}

/// The fields of a record; each kind of event uses some of them.
#[derive(Default)]
struct Fields {
    kind: u8,
    /// The operation of an effect, or how a term was won.
    op: u8,
    slot: u16,
    flags: u32,
    id: u64,
    epoch: u64,
    term: u64,
    extra: u64,
}

/// The flag of a replay, or of a repeated panic.
const REPLAY: u32 = 1;

impl Event {
    fn fields(&self) -> Fields {
        let none = Fields::default();
        match *self {
            Self::TermWon { how, term, epoch, session, next } => {
                Fields { kind: 1, op: how as u8, id: next, epoch, term, extra: session, ..none }
            }
            Self::Opened { term } => Fields { kind: 2, term, ..none },
            Self::Held { next } => Fields { kind: 3, id: next, ..none },
            Self::Joined { term, session } => Fields { kind: 4, term, extra: session, ..none },
            Self::Accepted { term, session } => Fields { kind: 5, term, extra: session, ..none },
            Self::Sealed { epoch, term, session, next } => {
                Fields { kind: 6, id: next, epoch, term, extra: session, ..none }
            }
            Self::AckReceived { epoch, term, session } => {
                Fields { kind: 7, epoch, term, extra: session, ..none }
            }
            Self::AckSent { epoch, term, session, next } => {
                Fields { kind: 8, id: next, epoch, term, extra: session, ..none }
            }
            Self::GaveUp { session } => Fields { kind: 9, extra: session, ..none },
            Self::HeardGivenUp { session } => Fields { kind: 10, extra: session, ..none },
            Self::Left { session } => Fields { kind: 11, extra: session, ..none },
            Self::Discarded { session } => Fields { kind: 12, extra: session, ..none },
            Self::Staged { id, slot, op, epoch, previous } => {
                Fields { kind: 13, op: op as u8, slot, id, epoch, extra: previous, ..none }
            }
            Self::Adopted { id, slot, op, epoch } => {
                Fields { kind: 14, op: op as u8, slot, id, epoch, ..none }
            }
            Self::Performing { id, slot, op, epoch, term, replay } => {
                let flags = if replay { REPLAY } else { 0 };
                Fields { kind: 15, op: op as u8, slot, flags, id, epoch, term, ..none }
            }
            Self::Withheld { id } => Fields { kind: 16, id, ..none },
            Self::Returned { id } => Fields { kind: 17, id, ..none },
            Self::Cancelled { id } => Fields { kind: 18, id, ..none },
            Self::Fenced => Fields { kind: 19, ..none },
            Self::Dropped { count } => Fields { kind: 20, id: count, ..none },
            Self::Ended => Fields { kind: 21, ..none },
            Self::Panicked { slot, line, epoch, again } => {
                let flags = if again { REPLAY } else { 0 };
                Fields { kind: 22, slot, flags, id: line, epoch, ..none }
            }
        }
    }

    fn from_fields(fields: &Fields) -> Result<Self, FormatError> {
        let Fields { kind, op: number, slot, flags, id, epoch, term, extra } = *fields;
        let bad = |what, found| Err(FormatError::Value { what, found });
        let op = Op::ALL.into_iter().find(|op| *op as u8 == number);
        let session = extra;
        Ok(match (kind, op) {
            (1, _) => match Won::ALL.into_iter().find(|how| *how as u8 == number) {
                Some(how) => Self::TermWon { how, term, epoch, session, next: id },
                None => return bad("how a term was won", number.into()),
            },
            (2, _) => Self::Opened { term },
            (3, _) => Self::Held { next: id },
            (4, _) => Self::Joined { term, session },
            (5, _) => Self::Accepted { term, session },
            (6, _) => Self::Sealed { epoch, term, session, next: id },
            (7, _) => Self::AckReceived { epoch, term, session },
            (8, _) => Self::AckSent { epoch, term, session, next: id },
            (9, _) => Self::GaveUp { session },
            (10, _) => Self::HeardGivenUp { session },
            (11, _) => Self::Left { session },
            (12, _) => Self::Discarded { session },
            (13, Some(op)) => Self::Staged { id, slot, op, epoch, previous: extra },
            (14, Some(op)) => Self::Adopted { id, slot, op, epoch },
            (15, Some(op)) => {
                Self::Performing { id, slot, op, epoch, term, replay: flags & REPLAY != 0 }
            }
            (13..=15, None) => return bad("what an effect does", number.into()),
            (16, _) => Self::Withheld { id },
            (17, _) => Self::Returned { id },
            (18, _) => Self::Cancelled { id },
            (19, _) => Self::Fenced,
            (20, _) => Self::Dropped { count: id },
            (21, _) => Self::Ended,
            (22, _) => Self::Panicked { slot, line: id, epoch, again: flags & REPLAY != 0 },
            _ => return bad("the kind of a record", kind.into()),
        })
    }
}

impl Entry {
    /// Encodes the record.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_LEN] {
        let Fields { kind, op, slot, flags, id, epoch, term, extra } = self.event.fields();
        let mut bytes = [0; RECORD_LEN];
        let mut put = Put(&mut bytes, 0);
        put.bytes(&[kind, op]);
        put.bytes(&slot.to_le_bytes());
        put.bytes(&flags.to_le_bytes());
        for number in [self.sequence, self.time, id, epoch, term, extra] {
            put.bytes(&number.to_le_bytes());
        }
        seal(&mut bytes);
        bytes
    }

    /// Decodes a record.
    ///
    /// # Errors
    /// When the checksum does not match, or the kind is unknown.
    pub fn decode(bytes: &[u8; RECORD_LEN]) -> Result<Self, FormatError> {
        check(bytes)?;
        let mut get = Get(bytes, 0);
        let [kind, op] = get.bytes();
        let slot = u16::from_le_bytes(get.bytes());
        let flags = u32::from_le_bytes(get.bytes());
        let (sequence, time) = (get.number(), get.number());
        let (id, epoch, term, extra) = (get.number(), get.number(), get.number(), get.number());
        let fields = Fields { kind, op, slot, flags, id, epoch, term, extra };
        Ok(Self { sequence, time, event: Event::from_fields(&fields)? })
    }
}

impl Header {
    /// Encodes the header.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut put = Put(&mut bytes, 0);
        put.bytes(&MAGIC);
        put.bytes(&VERSION.to_le_bytes());
        put.bytes(&[self.side as u8, 0, 0, 0]);
        for number in [self.number, self.realtime, self.monotonic] {
            put.bytes(&number.to_le_bytes());
        }
        put.text(&self.vm, NAME_MAX);
        put.text(&self.boot, BOOT_MAX);
        put.text(&self.holder, HOLDER_MAX);
        for number in self.before.to_numbers() {
            put.bytes(&number.to_le_bytes());
        }
        seal(&mut bytes);
        bytes
    }

    /// Decodes a header.
    ///
    /// # Errors
    /// When the bytes are not a header, have another version, or are damaged.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, FormatError> {
        let mut get = Get(bytes, 0);
        if get.bytes() != MAGIC {
            return Err(FormatError::Magic);
        }
        let version = u32::from_le_bytes(get.bytes());
        if version != VERSION {
            return Err(FormatError::Version(version));
        }
        check(bytes)?;
        let [side, ..] = get.bytes::<4>();
        let side = match side {
            0 => Side::Primary,
            1 => Side::Standby,
            found => return Err(FormatError::Value { what: "the side", found: found.into() }),
        };
        let (number, realtime, monotonic) = (get.number(), get.number(), get.number());
        let (vm, boot, holder) = (get.text(NAME_MAX), get.text(BOOT_MAX), get.text(HOLDER_MAX));
        let before = Summary::from_numbers(std::array::from_fn(|_| get.number()));
        Ok(Self { vm, holder, boot, side, number, realtime, monotonic, before })
    }
}

struct Put<'b>(&'b mut [u8], usize);

impl Put<'_> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0[self.1..][..bytes.len()].copy_from_slice(bytes);
        self.1 += bytes.len();
    }

    /// Writes text into a field of `max` bytes and leaves the rest zero.
    fn text(&mut self, text: &str, max: usize) {
        let cut = text.floor_char_boundary(max);
        self.0[self.1..][..cut].copy_from_slice(&text.as_bytes()[..cut]);
        self.1 += max;
    }
}

struct Get<'b>(&'b [u8], usize);

impl Get<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[self.1..][..N]);
        self.1 += N;
        bytes
    }

    fn number(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }

    fn text(&mut self, max: usize) -> String {
        let bytes = &self.0[self.1..][..max];
        self.1 += max;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(max);
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    }
}

fn seal(bytes: &mut [u8]) {
    let (covered, check) = bytes.split_at_mut(bytes.len() - CHECK_LEN);
    check.copy_from_slice(&xxh3_64(covered).to_le_bytes());
}

fn check(bytes: &[u8]) -> Result<(), FormatError> {
    let (covered, check) = bytes.split_at(bytes.len() - CHECK_LEN);
    let expected = Get(check, 0).number();
    let found = xxh3_64(covered);
    if expected == found { Ok(()) } else { Err(FormatError::Checksum { expected, found }) }
}
