//! A descriptor chain as a device sees it (virtio 1.2, 2.7.4): bytes to read, room to write, and
//! ranges of guest memory to pass on to an effect or an input.

use alloc::vec::Vec;
use core::marker::PhantomData;

use serde::{Deserialize, Serialize};

/// A piece of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestRange {
    /// Guest physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
}

/// The bytes of an effect: either a part of a chain, which stays in guest memory, or bytes that the
/// device made.
///
/// Only [`Chain::take_payload`] makes a payload of guest memory, and `Payload` has no
/// `Deserialize`. So a device can name only the guest memory that a chain has lent it.
///
/// A payload ends with the call in which its chain was lent (`'c`). Once the chain is completed,
/// the driver owns the memory again and may change it: a payload that a device had kept would name
/// other bytes by then (P1).
///
/// ```compile_fail,E0277
/// use io_gate::Payload;
/// use serde::Deserialize;
///
/// fn forge<'de>(bytes: impl serde::Deserializer<'de>) -> Option<Payload<'static>> {
///     Payload::deserialize(bytes).ok()
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload<'c>(PayloadBytes, PhantomData<&'c ()>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum PayloadBytes {
    Guest(Vec<GuestRange>),
    Inline(Vec<u8>),
}

impl Payload<'_> {
    /// Bytes made by the device itself.
    #[must_use]
    pub fn inline(bytes: Vec<u8>) -> Self {
        Self(PayloadBytes::Inline(bytes), PhantomData)
    }

    /// The form for a record, without the lifetime. The far side keeps the chain until the record
    /// is settled.
    pub(crate) fn for_record(self) -> Payload<'static> {
        Payload(self.0, PhantomData)
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            PayloadBytes::Guest(ranges) => total(ranges),
            PayloadBytes::Inline(bytes) => bytes.len(),
        }
    }

    /// Whether the payload has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends bytes to an inline payload if the result fits in `max`. Returns whether it did.
    pub(crate) fn extend(&mut self, more: &[u8], max: usize) -> bool {
        match &mut self.0 {
            PayloadBytes::Inline(bytes) if bytes.len() + more.len() <= max => {
                bytes.extend_from_slice(more);
                true
            }
            _ => false,
        }
    }

    /// The guest memory of the payload; `None` for bytes that the device made.
    #[must_use]
    pub fn guest_ranges(&self) -> Option<&[GuestRange]> {
        match &self.0 {
            PayloadBytes::Guest(ranges) => Some(ranges),
            PayloadBytes::Inline(_) => None,
        }
    }

    /// The bytes that the device made; `None` for guest memory.
    #[must_use]
    pub fn inline_bytes(&self) -> Option<&[u8]> {
        match &self.0 {
            PayloadBytes::Guest(_) => None,
            PayloadBytes::Inline(bytes) => Some(bytes),
        }
    }
}

/// Room in a chain for the result of an input. Only [`Chain::take_space`] makes one. A device
/// cannot keep it past the call in which the chain was lent (`'c`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space<'c>(Vec<GuestRange>, PhantomData<&'c ()>);

impl Space<'_> {
    /// As [`Payload::for_record`].
    pub(crate) fn for_record(self) -> Space<'static> {
        Space(self.0, PhantomData)
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        total(&self.0)
    }

    /// Whether there is no room.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The guest memory to write to.
    #[must_use]
    pub fn guest_ranges(&self) -> &[GuestRange] {
        &self.0
    }
}

/// Why an access to a chain failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainError {
    /// The device wanted more readable bytes than are left.
    ShortRead {
        /// Bytes wanted.
        wanted: usize,
        /// Bytes left.
        left: usize,
    },
    /// The device wanted more room than is left.
    ShortWrite {
        /// Bytes wanted.
        wanted: usize,
        /// Bytes left.
        left: usize,
    },
    /// A descriptor points outside guest memory.
    OutsideMemory(u64),
}

impl ChainError {
    fn short_read((wanted, left): (usize, usize)) -> Self {
        Self::ShortRead { wanted, left }
    }

    fn short_write((wanted, left): (usize, usize)) -> Self {
        Self::ShortWrite { wanted, left }
    }
}

impl core::fmt::Display for ChainError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::ShortRead { wanted, left } => {
                write!(f, "expected {wanted} readable bytes in the chain, found {left}")
            }
            Self::ShortWrite { wanted, left } => {
                write!(f, "expected {wanted} writable bytes in the chain, found {left}")
            }
            Self::OutsideMemory(addr) => write!(f, "descriptor outside guest memory at {addr:#x}"),
        }
    }
}

impl core::error::Error for ChainError {}

/// An access outside guest memory, at this guest physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryFault(pub u64);

/// Guest memory that the far side lends to a device, through a chain or to a bus master. Writes
/// mark pages dirty (P8).
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be lent to a chain as guest memory",
    note = "the far side implements `GuestBytes` for its view of guest memory; its writes must mark pages dirty"
)]
pub trait GuestBytes {
    /// Copies out of guest memory.
    ///
    /// # Errors
    /// [`MemoryFault`] when any byte lies outside.
    fn read_at(&self, addr: u64, into: &mut [u8]) -> Result<(), MemoryFault>;

    /// Copies into guest memory and marks the pages dirty.
    ///
    /// # Errors
    /// [`MemoryFault`] when any byte lies outside.
    fn write_at(&self, addr: u64, from: &[u8]) -> Result<(), MemoryFault>;
}

/// One descriptor chain: a part that the device reads, then a part that it writes (virtio 1.2,
/// 2.7.4). Each part is consumed from front to back.
pub struct Chain<'c> {
    memory: &'c dyn GuestBytes,
    readable: Cursor,
    writable: Cursor,
    written: usize,
    merged: u16,
}

/// Lends a chain. The far side has already checked that the ranges lie in guest memory.
#[must_use]
pub fn lend_chain(
    memory: &dyn GuestBytes,
    readable: Vec<GuestRange>,
    writable: Vec<GuestRange>,
) -> Chain<'_> {
    lend_merged(memory, readable, writable, 1)
}

/// As [`lend_chain`], but `writable` is the room of `merged` chains of the driver. It is for input
/// to a device that [merges](crate::Device::merges_input).
#[must_use]
pub fn lend_merged(
    memory: &dyn GuestBytes,
    readable: Vec<GuestRange>,
    writable: Vec<GuestRange>,
    merged: u16,
) -> Chain<'_> {
    let (readable, writable) = (Cursor::new(readable), Cursor::new(writable));
    Chain { memory, readable, writable, written: 0, merged }
}

/// Takes the chain's two lists of ranges back, so that the next request reuses their allocations.
#[must_use]
pub fn take_back(chain: Chain<'_>) -> (Vec<GuestRange>, Vec<GuestRange>) {
    (chain.readable.ranges, chain.writable.ranges)
}

impl<'c> Chain<'c> {
    /// Readable bytes not yet consumed.
    #[must_use]
    pub fn readable(&self) -> usize {
        self.readable.left
    }

    /// Room not yet consumed, in bytes.
    #[must_use]
    pub fn writable(&self) -> usize {
        self.writable.left
    }

    /// Bytes written through [`write`](Self::write) so far.
    #[must_use]
    pub fn written(&self) -> usize {
        self.written
    }

    /// The number of the driver's chains that make up the room. It exceeds 1 only for input to a
    /// device that [merges](crate::Device::merges_input).
    #[must_use]
    pub fn merged(&self) -> u16 {
        self.merged
    }

    /// Reads the next bytes without consuming them: a later read or payload starts at the same
    /// byte.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn peek(&mut self, into: &mut [u8]) -> Result<(), ChainError> {
        let at = (self.readable.index, self.readable.offset, self.readable.left);
        let read = self.read(into);
        (self.readable.index, self.readable.offset, self.readable.left) = at;
        read
    }

    /// Reads the next `into.len()` bytes.
    ///
    /// # Errors
    /// [`ChainError::ShortRead`] when fewer are left; nothing is consumed then.
    pub fn read(&mut self, into: &mut [u8]) -> Result<(), ChainError> {
        self.readable.check(into.len()).map_err(ChainError::short_read)?;
        let mut rest = into;
        while !rest.is_empty() {
            let piece = self.readable.next(rest.len());
            let (now, later) = rest.split_at_mut(piece.len as usize);
            self.memory
                .read_at(piece.addr, now)
                .map_err(|MemoryFault(addr)| ChainError::OutsideMemory(addr))?;
            rest = later;
        }
        Ok(())
    }

    /// Writes the next bytes of the writable part.
    ///
    /// # Errors
    /// [`ChainError::ShortWrite`] when there is less room; nothing is written then.
    pub fn write(&mut self, from: &[u8]) -> Result<(), ChainError> {
        self.writable.check(from.len()).map_err(ChainError::short_write)?;
        let mut rest = from;
        while !rest.is_empty() {
            let piece = self.writable.next(rest.len());
            let (now, later) = rest.split_at(piece.len as usize);
            self.memory
                .write_at(piece.addr, now)
                .map_err(|MemoryFault(addr)| ChainError::OutsideMemory(addr))?;
            rest = later;
        }
        self.written += from.len();
        Ok(())
    }

    /// Takes the next `len` readable bytes for an effect, without copying them.
    ///
    /// # Errors
    /// [`ChainError::ShortRead`] when fewer are left.
    pub fn take_payload(&mut self, len: usize) -> Result<Payload<'c>, ChainError> {
        self.readable.check(len).map_err(ChainError::short_read)?;
        Ok(Payload(PayloadBytes::Guest(self.readable.take(len)), PhantomData))
    }

    /// Takes the next `len` bytes of room for an input.
    ///
    /// # Errors
    /// [`ChainError::ShortWrite`] when there is less.
    pub fn take_space(&mut self, len: usize) -> Result<Space<'c>, ChainError> {
        self.writable.check(len).map_err(ChainError::short_write)?;
        Ok(Space(self.writable.take(len), PhantomData))
    }

    /// Skips the next `len` bytes of room, for instance to reach a status byte at the end.
    ///
    /// # Errors
    /// [`ChainError::ShortWrite`] when there is less.
    pub fn skip_writable(&mut self, len: usize) -> Result<(), ChainError> {
        self.writable.check(len).map_err(ChainError::short_write)?;
        let mut left = len;
        while left > 0 {
            left -= self.writable.next(left).len as usize;
        }
        Ok(())
    }
}

/// A position in a list of ranges.
struct Cursor {
    ranges: Vec<GuestRange>,
    index: usize,
    offset: u32,
    left: usize,
}

impl Cursor {
    fn new(ranges: Vec<GuestRange>) -> Self {
        let left = total(&ranges);
        Self { ranges, index: 0, offset: 0, left }
    }

    /// Checks that `wanted` bytes are left. The error is (bytes wanted, bytes left).
    fn check(&self, wanted: usize) -> Result<(), (usize, usize)> {
        if wanted > self.left { Err((wanted, self.left)) } else { Ok(()) }
    }

    /// The next piece of at most `wanted` bytes. The caller has checked that `wanted` bytes are
    /// left, and `wanted` is not 0.
    fn next(&mut self, wanted: usize) -> GuestRange {
        loop {
            let range = self.ranges[self.index];
            let here = range.len - self.offset;
            let len = here.min(u32::try_from(wanted).unwrap_or(u32::MAX));
            // If a range runs past the last address, the saturated address is refused as outside
            // guest memory.
            let addr = range.addr.saturating_add(u64::from(self.offset));
            if len == here {
                self.index += 1;
                self.offset = 0;
            } else {
                self.offset += len;
            }
            if len > 0 {
                self.left -= len as usize;
                return GuestRange { addr, len };
            }
        }
    }

    /// The next `wanted` bytes. The caller has checked that they are left.
    fn take(&mut self, wanted: usize) -> Vec<GuestRange> {
        let mut taken = Vec::new();
        let mut missing = wanted;
        while missing > 0 {
            let piece = self.next(missing);
            missing -= piece.len as usize;
            taken.push(piece);
        }
        taken
    }
}

/// How a payload is encoded in a record. `Payload` itself is neither `Serialize` nor `Deserialize`:
/// by deserializing one, a device could name any guest memory.
pub(crate) mod payload_in_record {
    use core::marker::PhantomData;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{Payload, PayloadBytes};

    pub(crate) fn serialize<S: Serializer>(
        payload: &Payload<'_>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        payload.0.serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Payload<'static>, D::Error> {
        Ok(Payload(PayloadBytes::deserialize(from)?, PhantomData))
    }
}

/// As [`payload_in_record`], for the room of an input.
pub(crate) mod space_in_record {
    use alloc::vec::Vec;
    use core::marker::PhantomData;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Space;

    pub(crate) fn serialize<S: Serializer>(space: &Space<'_>, to: S) -> Result<S::Ok, S::Error> {
        space.0.serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Space<'static>, D::Error> {
        Ok(Space(Vec::deserialize(from)?, PhantomData))
    }
}

fn total(ranges: &[GuestRange]) -> usize {
    ranges.iter().map(|range| range.len as usize).sum()
}
