//! The block device (virtio 1.2, section 5.2). Each request has a fixed slot; requests complete in
//! any order.

use crate::memory::{self, Zeroed};
use crate::virtio::queue::{Part, Queue};
use crate::virtio::transport::Transport;
use kemari_workload::record::SLOT_LEN;

/// The device ID.
pub const DEVICE_ID: u32 = 2;

// Feature bits (5.2.3).
const READ_ONLY: u64 = 1 << 5;
const FLUSH: u64 = 1 << 9;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;

/// Maximum number of slots.
pub const MAX_SLOTS: usize = 40;
const QUEUE_SIZE: u16 = 128;
const PARTS: u16 = 3;
const STATUS_OK: u8 = 0;
const NO_STATUS: u8 = 0xff;
const ID_LEN: u32 = 20;

/// The type of a request (5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Reads from the disk to the slot's data.
    Read = 0,
    /// Writes the slot's data.
    Write = 1,
    /// Makes completed writes durable.
    Flush = 4,
    /// Reads the disk's ID string into the slot's data.
    Id = 8,
    /// Discards sectors.
    Discard = 11,
    /// Zeroes sectors.
    WriteZeroes = 13,
}

#[repr(C, align(64))]
struct Slot {
    kind: u32,
    reserved: u32,
    sector: u64,
    status: u8,
    data: Data,
}

#[repr(C, align(64))]
struct Data([u8; SLOT_LEN]);

// SAFETY: integers only.
unsafe impl Zeroed for Slot {}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Busy,
    Done { ok: bool },
}

/// The disk.
pub struct Blk {
    transport: Transport,
    queue: Queue,
    slots: &'static mut [Slot; MAX_SLOTS],
    states: [State; MAX_SLOTS],
    usable: usize,
    features: u64,
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
}

impl Blk {
    /// Starts the device.
    pub fn start(transport: Transport) -> Self {
        let features = transport.negotiate(READ_ONLY | FLUSH | DISCARD | WRITE_ZEROES);
        let queue = Queue::new(transport, 0, QUEUE_SIZE);
        let usable = usize::from(queue.size() / PARTS).min(MAX_SLOTS);
        transport.start();
        Self {
            transport,
            queue,
            slots: memory::allocate(),
            states: [State::Free; MAX_SLOTS],
            usable,
            features,
            sectors: transport.config_u64(0),
        }
    }

    /// Number of usable slots.
    pub fn slots(&self) -> usize {
        self.usable
    }

    /// Whether the device refuses writes.
    pub fn read_only(&self) -> bool {
        self.features & READ_ONLY != 0
    }

    /// Whether the device supports flushes. Without them, completed writes are durable (5.2.5).
    pub fn has_flush(&self) -> bool {
        self.features & FLUSH != 0
    }

    /// Whether the device supports discards.
    pub fn has_discard(&self) -> bool {
        self.features & DISCARD != 0
    }

    /// Whether the device supports zeroing.
    pub fn has_write_zeroes(&self) -> bool {
        self.features & WRITE_ZEROES != 0
    }

    /// Whether `slot` has neither a request nor a result.
    pub fn is_free(&self, slot: usize) -> bool {
        self.states[slot] == State::Free
    }

    /// The data of `slot`, which must have no outstanding request.
    pub fn data(&mut self, slot: usize) -> &mut [u8; SLOT_LEN] {
        assert!(self.states[slot] != State::Busy, "the device has slot {slot}");
        &mut self.slots[slot].data.0
    }

    /// Starts a request in the free `slot`: for `length` bytes of the slot's data, at `sector`.
    pub fn submit(&mut self, slot: usize, kind: Kind, sector: u64, length: usize) {
        assert!(self.is_free(slot), "slot {slot} is in use");
        self.states[slot] = State::Busy;
        let memory = &mut self.slots[slot];
        (memory.kind, memory.reserved, memory.sector) = (kind as u32, 0, sector);
        memory.status = NO_STATUS;
        let from_device = matches!(kind, Kind::Read | Kind::Id);
        let header = Part { address: (&raw const memory.kind) as u64, length: 16, writable: false };
        let data = Part {
            address: (&raw const memory.data) as u64,
            length: length as u32,
            writable: from_device,
        };
        let status = Part { address: (&raw const memory.status) as u64, length: 1, writable: true };
        let first = slot as u16 * PARTS;
        if length == 0 {
            self.queue.offer(first, &[header, status]);
        } else {
            self.queue.offer(first, &[header, data, status]);
        }
    }

    /// Starts a flush in `slot`.
    pub fn submit_flush(&mut self, slot: usize) {
        self.submit(slot, Kind::Flush, 0, 0);
    }

    /// Starts reading the disk's ID string in `slot`.
    pub fn submit_id(&mut self, slot: usize) {
        self.submit(slot, Kind::Id, 0, ID_LEN as usize);
    }

    /// Starts discarding or zeroing `count` sectors (5.2.6: one segment of sector, count and
    /// flags).
    pub fn submit_range(&mut self, slot: usize, kind: Kind, sector: u64, count: u32) {
        let data = self.data(slot);
        data[..8].copy_from_slice(&sector.to_le_bytes());
        data[8..12].copy_from_slice(&count.to_le_bytes());
        data[12..16].fill(0);
        self.submit(slot, kind, 0, 16);
    }

    /// Takes completions from the device. Returns whether there were any.
    pub fn poll(&mut self) -> bool {
        let mut any = false;
        while let Some((first, _)) = self.queue.take_used() {
            let slot = usize::from(first / PARTS);
            assert!(
                first % PARTS == 0 && self.states[slot] == State::Busy,
                "the disk completed a request that was not made: descriptor {first}"
            );
            // SAFETY: the slot's own byte, which the device has written.
            let status = unsafe { (&raw const self.slots[slot].status).read_volatile() };
            let ok = status == STATUS_OK;
            self.states[slot] = State::Done { ok };
            any = true;
        }
        any
    }

    /// Takes the result of `slot`, if available: whether the request succeeded. The slot is free
    /// afterwards.
    pub fn take_result(&mut self, slot: usize) -> Option<bool> {
        let State::Done { ok } = self.states[slot] else {
            return None;
        };
        self.states[slot] = State::Free;
        Some(ok)
    }

    /// Waits for the result of `slot`: whether the request succeeded.
    pub fn wait(&mut self, slot: usize) -> bool {
        self.queue.notify();
        loop {
            self.poll();
            if let Some(ok) = self.take_result(slot) {
                return ok;
            }
            core::hint::spin_loop();
        }
    }

    /// Notifies the device of new requests.
    pub fn notify(&mut self) {
        self.queue.notify();
    }

    /// Enables or disables interrupts. Returns whether a completion is already available.
    pub fn want_interrupts(&mut self, wanted: bool) -> bool {
        self.queue.want_interrupts(wanted);
        self.queue.has_used()
    }

    /// Acknowledges the device's interrupt.
    pub fn acknowledge_interrupt(&self) {
        self.transport.acknowledge_interrupt();
    }
}
