//! Walks the descriptor chains of an untrusted guest (virtio 1.2, 2.7.5).
//!
//! A walk reads each descriptor once from guest memory and checks it. The size of the table limits
//! the number of steps, so a loop is an error.

use io_gate::host::GuestRange;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use crate::guest_memory::{GuestMemory, contains};

/// The maximum number of descriptors in an indirect table. Drivers use at most the queue size.
const MAX_INDIRECT: u32 = 1024;
const DESCRIPTOR_SIZE: u32 = 16;

/// The readable and the writable part of a chain, or of several chains joined. The lists are
/// reused, so that a request needs no allocation.
#[derive(Debug, Default)]
pub(crate) struct Walked {
    pub(crate) readable: Vec<GuestRange>,
    pub(crate) writable: Vec<GuestRange>,
}

/// What one walk added to the lists.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Extent {
    /// Number of writable bytes.
    pub(crate) room: u32,
    /// Number of entries of the virtqueue's own descriptor table.
    pub(crate) descriptors: u16,
}

/// Why a chain is invalid.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum WalkError {
    #[error("expected a descriptor index below {size}, found {index}")]
    Index { index: u16, size: u16 },
    #[error("expected at most {size} descriptors, found a longer chain or a loop")]
    TooLong { size: u16 },
    #[error("expected descriptors in guest memory, found {addr:#x}+{len:#x}")]
    Outside { addr: u64, len: u32 },
    #[error("expected all readable descriptors first, found one after a writable descriptor")]
    Order,
    #[error("expected at most 2^32 - 1 bytes in a chain, found more")]
    TooManyBytes,
    #[error("expected an indirect table of 1 to {MAX_INDIRECT} descriptors, found {len} bytes")]
    IndirectLength { len: u32 },
    #[error("expected no indirect table, as VIRTIO_F_INDIRECT_DESC was not accepted, found one")]
    NotNegotiated,
    #[error("expected an indirect descriptor alone and not nested, found it combined")]
    IndirectPlace,
}

/// The virtqueue of a chain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Address of the descriptor table.
    pub(crate) table: u64,
    /// Size of the queue.
    pub(crate) size: u16,
    /// Whether the driver has accepted indirect tables.
    pub(crate) indirect: bool,
}

/// The table that a walk reads descriptors from.
struct Table {
    addr: u64,
    size: u16,
}

/// Walks the chain that begins at `head` of a virtqueue, and appends it to `walked`. After an
/// error, `walked` may contain a part of the chain.
pub(crate) fn walk(
    memory: &GuestMemory,
    place: &Place,
    head: u16,
    walked: &mut Walked,
) -> Result<Extent, WalkError> {
    let mut extent = Extent::default();
    let mut table = Table { addr: place.table, size: place.size };
    let mut indirect = false;
    let mut bytes = 0_u32;
    let mut next = head;
    let mut left = place.size;
    loop {
        left = left.checked_sub(1).ok_or(WalkError::TooLong { size: table.size })?;
        let descriptor = read(memory, &table, next)?;
        extent.descriptors += u16::from(!indirect);
        if descriptor.refers_to_indirect_table() {
            if !place.indirect {
                return Err(WalkError::NotNegotiated);
            }
            if indirect || descriptor.has_next() {
                return Err(WalkError::IndirectPlace);
            }
            table = indirect_table(memory, &descriptor)?;
            left = table.size;
            next = 0;
            indirect = true;
            continue;
        }
        let range = GuestRange { addr: descriptor.addr().0, len: descriptor.len() };
        bytes = bytes.checked_add(range.len).ok_or(WalkError::TooManyBytes)?;
        let writable = descriptor.is_write_only();
        if !writable && extent.room > 0 {
            return Err(WalkError::Order);
        }
        if range.len > 0 {
            if !contains(memory, range) {
                return Err(WalkError::Outside { addr: range.addr, len: range.len });
            }
            if writable {
                extent.room += range.len;
                walked.writable.push(range);
            } else {
                walked.readable.push(range);
            }
        }
        if !descriptor.has_next() {
            return Ok(extent);
        }
        next = descriptor.next();
    }
}

impl Walked {
    pub(crate) fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
    }
}

fn read(memory: &GuestMemory, table: &Table, index: u16) -> Result<Descriptor, WalkError> {
    if index >= table.size {
        return Err(WalkError::Index { index, size: table.size });
    }
    let outside = WalkError::Outside { addr: table.addr, len: DESCRIPTOR_SIZE };
    let offset = u64::from(index) * u64::from(DESCRIPTOR_SIZE);
    let Some(addr) = table.addr.checked_add(offset) else { return Err(outside) };
    memory.read_obj(GuestAddress(addr)).map_err(|_| outside)
}

fn indirect_table(memory: &GuestMemory, descriptor: &Descriptor) -> Result<Table, WalkError> {
    let len = descriptor.len();
    let count = len / DESCRIPTOR_SIZE;
    if !len.is_multiple_of(DESCRIPTOR_SIZE) || count == 0 || count > MAX_INDIRECT {
        return Err(WalkError::IndirectLength { len });
    }
    let addr = descriptor.addr().0;
    if !contains(memory, GuestRange { addr, len }) {
        return Err(WalkError::Outside { addr, len });
    }
    Ok(Table { addr, size: count as u16 })
}
