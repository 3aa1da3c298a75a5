//! Guest memory in this crate: each write goes through vm-memory, which marks it dirty (P8).

use std::marker::PhantomData;

use io_gate::Space;
use io_gate::host::{GuestBytes, GuestRange, MemoryFault};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

pub use io_gate_memory::GuestMemory;

/// The maximum length of an input in bytes: more than a disk lets one request read.
const MAX_INPUT: usize = 16 << 20;

/// Guest memory, lent to a chain.
pub(crate) struct View<'m>(pub(crate) &'m GuestMemory);

impl GuestBytes for View<'_> {
    fn read_at(&self, addr: u64, into: &mut [u8]) -> Result<(), MemoryFault> {
        self.0.read_slice(into, GuestAddress(addr)).map_err(|_| MemoryFault(addr))
    }

    fn write_at(&self, addr: u64, from: &[u8]) -> Result<(), MemoryFault> {
        self.0.write_slice(from, GuestAddress(addr)).map_err(|_| MemoryFault(addr))
    }
}

/// Whether all of a range lies in guest memory.
pub(crate) fn contains(memory: &GuestMemory, range: GuestRange) -> bool {
    range.addr.checked_add(u64::from(range.len)).is_some()
        && GuestMemoryBackend::check_range(memory, GuestAddress(range.addr), range.len as usize)
}

/// Whether a space lies in guest memory and has a length that a device may request.
pub(crate) fn fits(memory: &GuestMemory, into: &Space<'_>) -> bool {
    into.guest_ranges().iter().all(|range| contains(memory, *range)) && into.len() <= MAX_INPUT
}

/// Copies ranges of guest memory into a new buffer.
pub(crate) fn copy_out(
    memory: &GuestMemory,
    ranges: &[GuestRange],
) -> Result<Vec<u8>, MemoryFault> {
    // Check before allocating: the lengths may come from a hostile checkpoint.
    for range in ranges {
        if !contains(memory, *range) {
            return Err(MemoryFault(range.addr));
        }
    }
    let mut bytes = vec![0; ranges.iter().map(|range| range.len as usize).sum()];
    let mut rest = bytes.as_mut_slice();
    for range in ranges {
        let (now, later) = rest.split_at_mut(range.len as usize);
        View(memory).read_at(range.addr, now)?;
        rest = later;
    }
    Ok(bytes)
}

/// Copies bytes into ranges of guest memory, until the bytes or the ranges are used up.
pub(crate) fn copy_in(
    memory: &GuestMemory,
    ranges: &[GuestRange],
    bytes: &[u8],
) -> Result<(), MemoryFault> {
    let mut rest = bytes;
    for range in ranges {
        let (now, later) = rest.split_at(rest.len().min(range.len as usize));
        View(memory).write_at(range.addr, now)?;
        rest = later;
    }
    Ok(())
}

/// Pieces of bytes for a gathering write. They stay borrowed while the list lives.
pub(crate) struct Gather<'m> {
    pieces: Vec<libc::iovec>,
    len: usize,
    borrowed: PhantomData<&'m [u8]>,
}

impl<'m> Gather<'m> {
    pub(crate) fn of_slice(bytes: &'m [u8]) -> Self {
        let piece =
            libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        Self { pieces: vec![piece], len: bytes.len(), borrowed: PhantomData }
    }

    /// The bytes stay in guest memory. The guest may change them while they are written out. This
    /// is used while the gate is open, so such a change affects only the guest.
    pub(crate) fn of_guest(
        memory: &'m GuestMemory,
        ranges: &[GuestRange],
    ) -> Result<Self, MemoryFault> {
        let mut pieces = Vec::with_capacity(ranges.len());
        let mut len = 0;
        for range in ranges {
            let fault = MemoryFault(range.addr);
            if range.addr.checked_add(u64::from(range.len)).is_none() {
                return Err(fault);
            }
            let slices = GuestMemoryBackend::get_slices(
                memory,
                GuestAddress(range.addr),
                range.len as usize,
            );
            for slice in slices {
                let slice = slice.map_err(|_| fault)?;
                let iov_base = slice.ptr_guard().as_ptr().cast_mut().cast();
                pieces.push(libc::iovec { iov_base, iov_len: slice.len() });
                len += slice.len();
            }
        }
        Ok(Self { pieces, len, borrowed: PhantomData })
    }

    /// Number of bytes left.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The pieces, for a system call that only reads them.
    pub(crate) fn pieces(&self) -> &[libc::iovec] {
        &self.pieces
    }

    /// Appends other bytes.
    pub(crate) fn append<'n>(&mut self, other: Gather<'n>)
    where
        'n: 'm,
    {
        self.pieces.extend(other.pieces);
        self.len += other.len;
    }

    /// Drops bytes from the front.
    pub(crate) fn advance(&mut self, count: usize) {
        let mut left = count.min(self.len);
        self.len -= left;
        let mut gone = 0;
        for piece in &mut self.pieces {
            if piece.iov_len > left {
                // SAFETY: `left` is less than the piece's length, so the result lies inside it.
                piece.iov_base = unsafe { piece.iov_base.cast::<u8>().add(left) }.cast();
                piece.iov_len -= left;
                break;
            }
            left -= piece.iov_len;
            gone += 1;
        }
        self.pieces.drain(..gone);
    }

    /// Copies the first `max` bytes.
    pub(crate) fn to_vec(&self, max: usize) -> Vec<u8> {
        let mut bytes = vec![0_u8; self.len.min(max)];
        self.copy_to(&mut bytes);
        bytes
    }

    /// Copies the first bytes into `bytes`, as many as fit.
    pub(crate) fn copy_to(&self, bytes: &mut [u8]) {
        let mut at = 0;
        for piece in &self.pieces {
            let len = piece.iov_len.min(bytes.len() - at);
            // SAFETY: the piece is valid for reads of its length while `self` borrows it, the
            // target has room for `len` bytes at `at`, and the two do not overlap. A guest that
            // writes at the same time can only change what is copied, which is plain bytes.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    piece.iov_base.cast::<u8>(),
                    bytes.as_mut_ptr().add(at),
                    len,
                );
            }
            at += len;
        }
    }
}
