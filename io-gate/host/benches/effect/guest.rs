//! Guest memory, and a driver that makes the same batch of requests available again and again.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use io_gate_host::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

/// Number of requests in a batch. The device gets one notification for each batch.
pub(crate) const BATCH: u16 = 16;
/// Enough descriptors for a batch, at up to three for each request. It is a power of two that each
/// device supports.
pub(crate) const QUEUE_SIZE: u16 = 64;

pub(crate) const DESCRIPTORS: u64 = 0x1000;
pub(crate) const AVAILABLE: u64 = 0x2000;
pub(crate) const USED: u64 = 0x3000;

const HEADERS: u64 = 0x10_000;
const STATUS: u64 = 0x20_000;
const DATA: u64 = 0x100_000;
const MEMORY: usize = 4 << 20;

// Descriptor flags (virtio 1.2, 2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// `VIRTIO_BLK_T_OUT` (virtio 1.2, 5.2.6).
const OUT: u32 = 1;

/// The kind of request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Writes to a disk.
    Block,
    /// Frames.
    Network,
    /// Output on a console without a reader.
    Console,
}

impl Kind {
    /// The queue for output.
    pub(crate) fn queue(self) -> u16 {
        match self {
            Self::Block => 0,
            Self::Network | Self::Console => 1,
        }
    }

    /// Number of bytes of the header in front of the data. The header has a descriptor of its own.
    pub(crate) fn header(self) -> usize {
        match self {
            Self::Block => 16,
            Self::Network => 12,
            Self::Console => 0,
        }
    }

    /// The sector of a request.
    pub(crate) fn sector(request: u16, size: usize) -> u64 {
        u64::from(request) * (size / 512) as u64
    }
}

/// A guest with one virtqueue in use. The descriptor table always contains the same batch of
/// requests.
pub(crate) struct Guest {
    pub(crate) memory: Arc<GuestMemory>,
    offered: u16,
}

impl Guest {
    pub(crate) fn new(kind: Kind, size: usize) -> Self {
        let memory = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap());
        let guest = Self { memory, offered: 0 };
        let mut free = 0;
        for request in 0..BATCH {
            let head = free;
            let pieces = guest.request(kind, size, request);
            for (at, (addr, len, flags)) in pieces.iter().enumerate() {
                let next = if at + 1 == pieces.len() { 0 } else { NEXT };
                guest.describe(free, *addr, *len as u32, flags | next);
                free += 1;
            }
            // The ring is filled only once, since its size is a multiple of the batch.
            for place in (request..QUEUE_SIZE).step_by(usize::from(BATCH)) {
                guest.put(AVAILABLE + 4 + 2 * u64::from(place), &head.to_le_bytes());
            }
        }
        guest
    }

    /// Writes a request into memory. Returns its buffers.
    fn request(&self, kind: Kind, size: usize, request: u16) -> Vec<(u64, usize, u16)> {
        let at = u64::from(request);
        let header = HEADERS + 16 * at;
        let data = DATA + 0x2000 * at;
        self.put(data, &vec![request as u8; size]);
        if kind == Kind::Block {
            self.put(header, &OUT.to_le_bytes());
            self.put(header + 8, &Kind::sector(request, size).to_le_bytes());
        }
        let mut pieces = vec![(header, kind.header(), 0), (data, size, 0)];
        if kind == Kind::Block {
            pieces.push((STATUS + at, 1, WRITE));
        }
        pieces.retain(|(_, len, _)| *len > 0);
        pieces
    }

    fn describe(&self, index: u16, addr: u64, len: u32, flags: u16) {
        let at = DESCRIPTORS + 16 * u64::from(index);
        self.put(at, &addr.to_le_bytes());
        self.put(at + 8, &len.to_le_bytes());
        self.put(at + 12, &flags.to_le_bytes());
        self.put(at + 14, &(index + 1).to_le_bytes());
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    /// Makes the batch available again.
    pub(crate) fn offer(&mut self) {
        self.offered = self.offered.wrapping_add(BATCH);
        let index = GuestAddress(AVAILABLE + 2);
        self.memory.store(self.offered.to_le(), index, Ordering::Release).unwrap();
    }

    /// Asserts that each chain has come back: otherwise the measurement is invalid.
    pub(crate) fn assert_done(&self) {
        let used: u16 = self.memory.load(GuestAddress(USED + 2), Ordering::Acquire).unwrap();
        assert_eq!(u16::from_le(used), self.offered, "chains that did not come back");
    }

    /// Asserts that every write has succeeded.
    pub(crate) fn assert_succeeded(&self) {
        for request in 0..u64::from(BATCH) {
            let status: u8 = self.memory.read_obj(GuestAddress(STATUS + request)).unwrap();
            assert_eq!(status, 0, "a request that failed");
        }
    }
}
