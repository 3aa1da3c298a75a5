//! The operations that a client can request, and which of them change state.

use crate::FormatError;

/// Maximum length of the payload of [`Op::Append`], in bytes.
pub const MAX_PAYLOAD: usize = 1024;

/// The flag of [`Op::Append`] and [`Op::Put`] that requests a flush of the disk before the
/// operation is applied and answered.
pub const FLAG_FLUSH: u8 = 1;

/// Length of the payload that [`Op::Put`] logs, in bytes: key and value.
pub const PUT_PAYLOAD_LEN: usize = 12;

/// An operation's code on the wire and in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum OpCode {
    /// See [`Op::Ping`].
    Ping = 1,
    /// See [`Op::Append`].
    Append = 2,
    /// See [`Op::Put`].
    Put = 3,
    /// See [`Op::Get`].
    Get = 4,
    /// See [`Op::SetDirty`].
    SetDirty = 5,
    /// See [`Op::Verify`].
    Verify = 6,
    /// See [`Op::PowerOff`].
    PowerOff = 7,
    /// See [`Op::Reset`].
    Reset = 8,
    /// See [`Op::ConsoleMark`].
    ConsoleMark = 9,
    /// See [`Op::Touch`].
    Touch = 10,
    /// See [`Op::Compute`].
    Compute = 11,
    /// See [`Op::CompareAndSet`].
    CompareAndSet = 12,
}

impl OpCode {
    /// Whether the operation is logged, counted and chained.
    pub const fn changes_state(self) -> bool {
        matches!(self, Self::Append | Self::Put)
    }
}

impl TryFrom<u8> for OpCode {
    type Error = FormatError;

    fn try_from(code: u8) -> Result<Self, FormatError> {
        Ok(match code {
            1 => Self::Ping,
            2 => Self::Append,
            3 => Self::Put,
            4 => Self::Get,
            5 => Self::SetDirty,
            6 => Self::Verify,
            7 => Self::PowerOff,
            8 => Self::Reset,
            9 => Self::ConsoleMark,
            10 => Self::Touch,
            11 => Self::Compute,
            12 => Self::CompareAndSet,
            _ => return Err(FormatError::UnknownOp(code)),
        })
    }
}

/// An operation with its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op<'a> {
    /// Returns only the counters. The reply's `value` is the number of CPUs.
    Ping,
    /// Logs `payload` on disk, waits for the write (and for a flush, if requested), then applies
    /// the operation and answers. The reply's `value` is the record's index, which equals
    /// `applied`.
    Append {
        /// The payload, at most [`MAX_PAYLOAD`] bytes.
        payload: &'a [u8],
        /// Whether to flush the disk before answering.
        flush: bool,
    },
    /// Sets `key` to `value`, and logs this on disk like [`Op::Append`]. The reply's `value` is the
    /// new value.
    Put {
        /// The key.
        key: u32,
        /// The new value.
        value: u64,
        /// Whether to flush the disk before answering.
        flush: bool,
    },
    /// Sets `key` to `value` in memory only, if it has the value `expected`; a key without a value
    /// counts as 0. The reply's `value` is the former value.
    CompareAndSet {
        /// The key.
        key: u32,
        /// The value that the key must have.
        expected: u32,
        /// The new value.
        value: u32,
    },
    /// Reads `key`. The reply's `value` is its value; without one, the status is `NotFound`.
    Get {
        /// The key.
        key: u32,
    },
    /// Dirties memory in the background from now on. A rate of 0 stops it. The reply's `value` is
    /// the number of pages in the region, which the guest's memory limits.
    SetDirty {
        /// Number of pages to rewrite per second.
        pages_per_second: u32,
        /// Number of pages in the region, which are rewritten in turn; 0 keeps the current region.
        region_pages: u32,
    },
    /// Checks the guest's memory patterns, its table and the end of its log on disk. The reply's
    /// `value` is the number of faults found.
    Verify,
    /// Answers, then powers the machine off.
    PowerOff,
    /// Answers, then resets the machine.
    Reset,
    /// Prints the line `MARK <number>` on the serial line and on the virtio console.
    ConsoleMark {
        /// The number to print.
        number: u64,
    },
    /// Rewrites the first pages of the region of [`Op::SetDirty`] once before answering. They are
    /// then dirty in the checkpoint for which the answer waits. The reply's `value` is the number
    /// of pages, which the guest's memory limits.
    Touch {
        /// Number of pages.
        pages: u32,
        /// Whether to rewrite each word; otherwise only the first words and the last 64 bytes, as
        /// guests usually do.
        whole: bool,
    },
    /// Computes the CRC-32 of a block of 1 KiB this many times before answering, about 2 us each.
    /// The reply's `value` is the sum of the results.
    Compute {
        /// Number of blocks.
        kib: u32,
    },
}

impl Op<'_> {
    /// The operation's code.
    pub const fn code(&self) -> OpCode {
        match self {
            Self::Ping => OpCode::Ping,
            Self::Append { .. } => OpCode::Append,
            Self::Put { .. } => OpCode::Put,
            Self::Get { .. } => OpCode::Get,
            Self::SetDirty { .. } => OpCode::SetDirty,
            Self::Verify => OpCode::Verify,
            Self::PowerOff => OpCode::PowerOff,
            Self::Reset => OpCode::Reset,
            Self::ConsoleMark { .. } => OpCode::ConsoleMark,
            Self::Touch { .. } => OpCode::Touch,
            Self::Compute { .. } => OpCode::Compute,
            Self::CompareAndSet { .. } => OpCode::CompareAndSet,
        }
    }

    /// Whether the disk must be flushed before the operation is applied.
    pub const fn wants_flush(&self) -> bool {
        matches!(self, Self::Append { flush: true, .. } | Self::Put { flush: true, .. })
    }

    /// Calls `use_payload` with the bytes that are logged and chained for this operation: the
    /// payload of an append, key and value (little endian) of a put, no bytes otherwise.
    pub fn with_log_payload<R>(&self, use_payload: impl FnOnce(&[u8]) -> R) -> R {
        match *self {
            Self::Append { payload, .. } => use_payload(payload),
            Self::Put { key, value, .. } => use_payload(&put_payload(key, value)),
            _ => use_payload(&[]),
        }
    }
}

/// The logged payload of a put.
pub fn put_payload(key: u32, value: u64) -> [u8; PUT_PAYLOAD_LEN] {
    let mut payload = [0; PUT_PAYLOAD_LEN];
    payload[..4].copy_from_slice(&key.to_le_bytes());
    payload[4..].copy_from_slice(&value.to_le_bytes());
    payload
}

/// Key and value in a put's logged payload; `None` if the payload has another length.
pub fn parse_put_payload(payload: &[u8]) -> Option<(u32, u64)> {
    if payload.len() != PUT_PAYLOAD_LEN {
        return None;
    }
    let (key, value) = payload.split_at(4);
    Some((u32::from_le_bytes(key.try_into().ok()?), u64::from_le_bytes(value.try_into().ok()?)))
}
