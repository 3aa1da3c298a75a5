//! A descriptor ring in guest memory, as the driver has set it up in the registers. The card owns
//! the descriptors from the head up to the tail.

use io_gate::Gate;

use super::registers::{Registers, reg};

/// Bytes of a descriptor.
const DESCRIPTOR: usize = 16;

/// The registers of one of the two rings.
#[derive(Clone, Copy)]
pub(super) struct Which {
    base_low: u32,
    base_high: u32,
    len: u32,
    pub(super) head: u32,
    tail: u32,
}

/// The ring of free buffers.
pub(super) const RECEIVE: Which = Which {
    base_low: reg::RDBAL,
    base_high: reg::RDBAH,
    len: reg::RDLEN,
    head: reg::RDH,
    tail: reg::RDT,
};

/// The ring of frames to send.
pub(super) const TRANSMIT: Which = Which {
    base_low: reg::TDBAL,
    base_high: reg::TDBAH,
    len: reg::TDLEN,
    head: reg::TDH,
    tail: reg::TDT,
};

/// A snapshot of a ring.
#[derive(Clone, Copy)]
pub(super) struct Ring {
    base: u64,
    /// Number of descriptors; not 0.
    pub(super) size: u32,
    pub(super) head: u32,
    tail: u32,
}

impl Ring {
    /// The ring; `None` if its head or tail is beyond its end.
    pub(super) fn of(registers: &Registers, which: Which) -> Option<Self> {
        let base = u64::from(registers.get(which.base_high)) << 32
            | u64::from(registers.get(which.base_low));
        let size = registers.get(which.len) / DESCRIPTOR as u32;
        let (head, tail) = (registers.get(which.head), registers.get(which.tail));
        (head < size && tail < size).then_some(Self { base, size, head, tail })
    }

    /// Number of descriptors that the card owns: from the head up to the tail.
    pub(super) fn owned(&self) -> u32 {
        (self.tail + self.size - self.head) % self.size
    }

    /// The address of the descriptor at the head.
    fn address(&self) -> u64 {
        self.base.wrapping_add(u64::from(self.head) * DESCRIPTOR as u64)
    }

    /// Reads the descriptor at the head. A descriptor outside of memory reads as zeros, which
    /// request nothing.
    pub(super) fn read(&self, gate: &Gate<'_>) -> [u8; DESCRIPTOR] {
        let mut bytes = [0; DESCRIPTOR];
        match gate.dma_read(self.address(), &mut bytes) {
            Ok(()) => bytes,
            Err(_) => [0; DESCRIPTOR],
        }
    }

    /// Writes to the descriptor at the head. A write outside of memory is lost, as on a bus.
    pub(super) fn write(&self, gate: &mut Gate<'_>, offset: u64, bytes: &[u8]) {
        let _ = gate.dma_write(self.address().wrapping_add(offset), bytes);
    }

    /// Steps to the next descriptor.
    pub(super) fn advance(&mut self) {
        self.head = (self.head + 1) % self.size;
    }
}
