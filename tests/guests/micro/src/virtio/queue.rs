//! The split virtqueue (virtio 1.2, section 2.7).

use crate::memory::{self, Zeroed};
use crate::virtio::transport::Transport;
use core::sync::atomic::{Ordering, fence};

/// Maximum number of entries in a queue.
pub const MAX_SIZE: usize = 256;

// Descriptor flags (2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
// Flags of the available ring (2.7.6) and of the used ring (2.7.8).
const AVAIL_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;

#[repr(C, align(16))]
struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

#[repr(C, align(2))]
struct Available {
    flags: u16,
    index: u16,
    ring: [u16; MAX_SIZE],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct UsedElement {
    id: u32,
    length: u32,
}

#[repr(C, align(4))]
struct Used {
    flags: u16,
    index: u16,
    ring: [UsedElement; MAX_SIZE],
}

#[repr(C, align(4096))]
struct Memory {
    descriptors: [Descriptor; MAX_SIZE],
    available: Available,
    used: Used,
}

// SAFETY: integers only.
unsafe impl Zeroed for Memory {}

/// A part of a request's buffer.
#[derive(Clone, Copy)]
pub struct Part {
    /// The address.
    pub address: u64,
    /// The length in bytes.
    pub length: u32,
    /// Whether the device writes to the part.
    pub writable: bool,
}

/// A queue. Its owner assigns descriptors to requests.
pub struct Queue {
    transport: Transport,
    index: u32,
    size: u16,
    memory: *mut Memory,
    published: u16,
    notified: u16,
    seen: u16,
}

impl Queue {
    /// Creates queue `index` of a device, with at most `wanted` entries.
    pub(super) fn new(transport: Transport, index: u32, wanted: u16) -> Self {
        let size = transport.queue_size(index, wanted);
        assert!(
            size.is_power_of_two() && usize::from(size) <= MAX_SIZE,
            "a queue of {size} entries"
        );
        let mut queue = Self {
            transport,
            index,
            size,
            memory: memory::allocate::<Memory>(),
            published: 0,
            notified: 0,
            seen: 0,
        };
        queue.want_interrupts(false);
        transport.start_queue(index, size, queue.addresses());
        queue
    }

    fn addresses(&self) -> [u64; 3] {
        // SAFETY: pointers to places inside the allocation; nothing is read.
        unsafe {
            [
                (&raw const (*self.memory).descriptors) as u64,
                (&raw const (*self.memory).available) as u64,
                (&raw const (*self.memory).used) as u64,
            ]
        }
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Enables or disables interrupts of the device (2.7.7). This is only a hint to the device.
    pub fn want_interrupts(&mut self, wanted: bool) {
        let flags = if wanted { 0 } else { AVAIL_NO_INTERRUPT };
        // SAFETY: our allocation; the device may read it at any time, hence volatile.
        unsafe { (&raw mut (*self.memory).available.flags).write_volatile(flags) };
        // The device must see the flag before the guest reads the used ring.
        fence(Ordering::SeqCst);
    }

    /// Offers the chain of `parts` in the descriptors from `first` on, which must be free. The next
    /// [`Queue::notify`] notifies the device.
    pub fn offer(&mut self, first: u16, parts: &[Part]) {
        for (place, part) in parts.iter().enumerate() {
            let number = first + place as u16;
            assert!(number < self.size, "descriptor {number} of {}", self.size);
            let more = place + 1 < parts.len();
            let descriptor = Descriptor {
                address: part.address,
                length: part.length,
                flags: if more { NEXT } else { 0 } | if part.writable { WRITE } else { 0 },
                next: if more { number + 1 } else { 0 },
            };
            // SAFETY: our allocation, and the descriptor is free, so the device does not read it.
            unsafe {
                (&raw mut (*self.memory).descriptors[usize::from(number)])
                    .write_volatile(descriptor);
            }
        }
        let place = usize::from(self.published % self.size);
        self.published = self.published.wrapping_add(1);
        // SAFETY: our allocation. 2.7.13: the entry and the descriptors are visible before the
        // index.
        unsafe {
            (&raw mut (*self.memory).available.ring[place]).write_volatile(first);
            fence(Ordering::SeqCst);
            (&raw mut (*self.memory).available.index).write_volatile(self.published);
        }
    }

    /// Notifies the device of the chains since the last call, unless the device suppresses
    /// notifications (2.7.10).
    pub fn notify(&mut self) {
        if self.notified == self.published {
            return;
        }
        self.notified = self.published;
        fence(Ordering::SeqCst);
        // SAFETY: our allocation; the device writes it, hence volatile.
        let flags = unsafe { (&raw const (*self.memory).used.flags).read_volatile() };
        if flags & USED_NO_NOTIFY == 0 {
            self.transport.notify(self.index);
        }
    }

    /// Whether the device has used a chain that is not taken yet.
    pub fn has_used(&self) -> bool {
        // SAFETY: our allocation; the device writes it, hence volatile.
        unsafe { (&raw const (*self.memory).used.index).read_volatile() != self.seen }
    }

    /// The next used chain: its first descriptor, and the number of bytes that the device wrote.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        if !self.has_used() {
            return None;
        }
        // The element must be read after the index (2.7.14).
        fence(Ordering::SeqCst);
        let place = usize::from(self.seen % self.size);
        // SAFETY: our allocation; the device no longer writes this element.
        let element = unsafe { (&raw const (*self.memory).used.ring[place]).read_volatile() };
        self.seen = self.seen.wrapping_add(1);
        assert!(
            element.id < u32::from(self.size),
            "queue {}: the device used descriptor {} of {}",
            self.index,
            element.id,
            self.size
        );
        Some((element.id as u16, element.length))
    }
}
