//! Data that may leave (P1): the bytes of a released effect, and this host's own announcements.
//!
//! A [`Released`] is created only from a request that the gate has released, and [`Outgoing`] and
//! [`Kept`] only from a [`Released`]. So a backend has no call to send bytes from elsewhere.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use io_gate::Payload;
use io_gate::host::{EffectOp, MemoryFault, OwnOp, Performable, Request};

use crate::guest_memory::{Gather, GuestMemory};

/// An effect that the gate has released: the standby has acknowledged it, or this machine runs
/// alone. An input is never a [`Released`], because it is performed before any acknowledgement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Released<'r> {
    request: &'r Performable,
    op: &'r EffectOp,
}

impl<'r> Released<'r> {
    pub(crate) fn of(request: &'r Performable) -> Option<Self> {
        match &request.record().request {
            Request::Effect(op) | Request::Own(OwnOp { op, .. }) => Some(Self { request, op }),
            Request::Input(_) => None,
        }
    }

    /// The operation to perform.
    pub(crate) fn op(self) -> &'r EffectOp {
        self.op
    }

    /// The effect's bytes: the copy from its staging, the device's own bytes, or guest memory.
    /// Empty if the effect has none.
    pub(crate) fn bytes<'m>(self, memory: &'m GuestMemory) -> Result<Outgoing<'m>, MemoryFault>
    where
        'r: 'm,
    {
        let payload = self.op.payload();
        let own = payload.and_then(Payload::inline_bytes);
        if let Some(bytes) = self.request.copy().or(own) {
            return Ok(Outgoing(Gather::of_slice(bytes)));
        }
        let ranges = payload.and_then(Payload::guest_ranges).unwrap_or_default();
        Gather::of_guest(memory, ranges).map(Outgoing)
    }

    /// The zeroes that the effect writes, at most [`ZEROES`] of them.
    pub(crate) fn zeroes(self, len: usize) -> Outgoing<'static> {
        static ZERO: [u8; ZEROES] = [0; ZEROES];
        Outgoing(Gather::of_slice(&ZERO[..len.min(ZEROES)]))
    }
}

/// Size in bytes of the pieces in which zeroes are written if the file system has no better way.
const ZEROES: usize = 256 * 1024;
/// Size in bytes of the length in front of a frame on a stream.
pub(crate) const PREFIX: usize = 4;
/// Buffer for the length of a frame while the frame is sent.
pub(crate) type Prefix = [u8; PREFIX];

/// Bytes that may leave.
pub(crate) struct Outgoing<'m>(Gather<'m>);

impl<'m> Outgoing<'m> {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Drops `count` bytes from the front.
    pub(crate) fn advance(&mut self, count: usize) {
        self.0.advance(count);
    }

    /// A copy of the first `max` bytes, to be sent later.
    pub(crate) fn keep(&self, max: usize) -> Kept {
        Kept(self.0.to_vec(max))
    }

    /// The same bytes, after their length.
    pub(crate) fn behind_its_length(self, prefix: &'m mut Prefix) -> Self {
        *prefix = (self.len() as u32).to_be_bytes();
        let mut message = Gather::of_slice(prefix);
        message.append(self.0);
        Self(message)
    }

    /// The first of these bytes, within whole blocks of a file. The bytes around them are read from
    /// the file.
    pub(crate) fn within_blocks(
        &self,
        file: &File,
        stretch: &Stretch,
        blocks: &'m mut [u8],
    ) -> io::Result<Outgoing<'m>> {
        stretch.read_ends(file, blocks)?;
        self.0.copy_to(&mut blocks[stretch.skip..stretch.skip + stretch.wanted]);
        Ok(Outgoing(Gather::of_slice(blocks)))
    }

    pub(super) fn gather(&self) -> &Gather<'m> {
        &self.0
    }

    /// For tests of functions that take outgoing bytes.
    #[cfg(test)]
    pub(crate) fn made_up(bytes: &'m [u8]) -> Self {
        Self(Gather::of_slice(bytes))
    }
}

/// A range of whole blocks of a file, and the position of the wanted bytes in it.
pub(crate) struct Stretch {
    pub(crate) block: usize,
    pub(crate) at: u64,
    pub(crate) len: usize,
    pub(crate) skip: usize,
    pub(crate) wanted: usize,
}

impl Stretch {
    /// Reads the first and the last block if they are replaced only in part.
    fn read_ends(&self, file: &File, blocks: &mut [u8]) -> io::Result<()> {
        if self.skip > 0 {
            file.read_exact_at(&mut blocks[..self.block], self.at)?;
        }
        let last = self.len - self.block;
        let whole = self.skip + self.wanted == self.len;
        if !whole && (last > 0 || self.skip == 0) {
            file.read_exact_at(&mut blocks[last..], self.at + last as u64)?;
        }
        Ok(())
    }
}

/// Bytes that may leave and wait for room.
#[derive(Debug, Default)]
pub(crate) struct Kept(Vec<u8>);

impl Kept {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Appends the other's bytes from `start` on, at most `max` of them.
    pub(crate) fn add(&mut self, other: &Self, start: usize, max: usize) {
        let rest = &other.0[start..];
        self.0.extend_from_slice(&rest[..rest.len().min(max)]);
    }

    /// The bytes from `start` on.
    pub(crate) fn rest(&self, start: usize) -> Outgoing<'_> {
        Outgoing(Gather::of_slice(&self.0[start..]))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// This host's own announcement: a reverse ARP request (RFC 903) from the guest's address,
    /// after `header` zeroes.
    pub(crate) fn announcement(mac: [u8; 6], header: usize) -> Self {
        let mut frame = vec![0; header];
        frame.extend([0xff; 6]);
        frame.extend(mac);
        frame.extend(0x8035_u16.to_be_bytes());
        // Ethernet, IPv4, address lengths 6 and 4, operation 3: request reverse.
        frame.extend([0, 1, 8, 0, 6, 4, 0, 3]);
        frame.extend(mac);
        frame.extend([0; 4]);
        frame.extend(mac);
        frame.extend([0; 4]);
        frame.resize(header + MIN_FRAME, 0);
        Self(frame)
    }
}

/// Length in bytes of the shortest Ethernet frame without its checksum. An announcement is padded
/// to this length.
const MIN_FRAME: usize = 60;
