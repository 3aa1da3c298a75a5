//! One virtqueue of a slot: virtio-queue's state, and the checks of the settings that the guest
//! makes (virtio 1.2, 2.7).

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Error, Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::chain_walk::{Extent, Place, WalkError, Walked, walk};
use crate::guest_memory::GuestMemory;
use crate::slot_state::QueueSaved;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` (virtio 1.2, 2.7.6).
const NO_INTERRUPT: u16 = 1;
// Layout of the two rings and the descriptor table, in bytes (2.7.5, 2.7.6, 2.7.8).
const AVAIL_RING: u64 = 4;
const AVAIL_ENTRY: u64 = 2;
const USED_RING: u64 = 4;
const USED_ENTRY: u64 = 8;
const DESCRIPTOR: u64 = 16;
/// The length of the field at the end of each ring that says when to notify next (2.7.10).
const EVENT_INDEX: u64 = 2;

/// A part of a virtqueue. Its address is a multiple of its alignment (2.7).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part {
    Descriptors,
    Available,
    Used,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Descriptors => "descriptor table",
            Self::Available => "available ring",
            Self::Used => "used ring",
        }
    }

    fn alignment(self) -> u32 {
        match self {
            Self::Descriptors => 16,
            Self::Available => 2,
            Self::Used => 4,
        }
    }

    fn len(self, size: u64) -> u64 {
        match self {
            Self::Descriptors => DESCRIPTOR * size,
            Self::Available => AVAIL_RING + AVAIL_ENTRY * size + EVENT_INDEX,
            Self::Used => USED_RING + USED_ENTRY * size + EVENT_INDEX,
        }
    }
}

/// A virtqueue.
pub(crate) struct Ring {
    queue: Queue,
    /// Number of chains given back since the last check for an interrupt.
    added: u16,
    /// Whether the driver has accepted indirect tables.
    indirect: bool,
}

impl Ring {
    pub(crate) fn new(max_size: u16) -> Self {
        let queue =
            Queue::new(max_size).expect("a device's queue sizes are powers of two up to 32768");
        Self { queue, added: 0, indirect: false }
    }

    /// Sets the size that the driver chose: a power of two (2.7) up to the maximum.
    pub(crate) fn set_size(&mut self, size: u32) -> Result<(), String> {
        let max = self.max_size();
        match u16::try_from(size) {
            Ok(size) if size.is_power_of_two() && size <= max => {
                self.queue.set_size(size);
                Ok(())
            }
            _ => Err(format!("expected a size that is a power of two up to {max}, found {size}")),
        }
    }

    /// Sets the low half, the high half or both of a part's address. The low half decides the
    /// alignment.
    pub(crate) fn set_address(
        &mut self,
        part: Part,
        low: Option<u32>,
        high: Option<u32>,
    ) -> Result<(), String> {
        if let Some(low) = low
            && !low.is_multiple_of(part.alignment())
        {
            let (name, alignment) = (part.name(), part.alignment());
            return Err(format!(
                "expected the address of the {name} to be a multiple of {alignment}, found one that ends in {low:#x}"
            ));
        }
        match part {
            Part::Descriptors => self.queue.set_desc_table_address(low, high),
            Part::Available => self.queue.set_avail_ring_address(low, high),
            Part::Used => self.queue.set_used_ring_address(low, high),
        }
        Ok(())
    }

    pub(crate) fn set_ready(&mut self, ready: bool) {
        self.queue.set_ready(ready);
    }

    /// Sets the ring features that the driver has accepted.
    pub(crate) fn negotiated(&mut self, event_idx: bool, indirect: bool) {
        self.queue.set_event_idx(event_idx);
        self.indirect = indirect;
    }

    pub(crate) fn max_size(&self) -> u16 {
        self.queue.max_size()
    }

    pub(crate) fn size(&self) -> u16 {
        self.queue.size()
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.queue.ready()
    }

    pub(crate) fn reset(&mut self) {
        self.queue.reset();
        self.added = 0;
        self.indirect = false;
    }

    /// Checks that all parts lie in guest memory and do not overlap. virtio-queue's own check is
    /// not used, since it logs a line each time.
    pub(crate) fn check(&self, memory: &GuestMemory) -> Result<(), String> {
        let parts = [
            (Part::Descriptors, self.queue.desc_table()),
            (Part::Available, self.queue.avail_ring()),
            (Part::Used, self.queue.used_ring()),
        ];
        let size = self.size().into();
        for (part, addr) in parts {
            let len = part.len(size);
            if !memory.check_range(GuestAddress(addr), len as usize) {
                let name = part.name();
                return Err(format!(
                    "expected the {name} in guest memory, found {addr:#x}+{len:#x}"
                ));
            }
        }
        // Parts must not overlap (2.7). This also refuses a driver that has set no addresses: then
        // all parts lie at 0.
        for (index, (part, addr)) in parts.into_iter().enumerate() {
            for (other, at) in parts.into_iter().skip(index + 1) {
                if addr < at + other.len(size) && at < addr + part.len(size) {
                    let (name, other) = (part.name(), other.name());
                    return Err(format!(
                        "expected parts that do not overlap, found the {name} at {addr:#x} and the {other} at {at:#x}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Takes the head of the next available chain.
    pub(crate) fn pop(&mut self, memory: &GuestMemory) -> Result<Option<u16>, Error> {
        let mut available = self.queue.iter(memory)?;
        Ok(available.next().map(|chain| chain.head_index()))
    }

    /// Whether a chain is available.
    pub(crate) fn has_available(&self, memory: &GuestMemory) -> Result<bool, Error> {
        let available = self.queue.avail_idx(memory, Ordering::Acquire)?;
        Ok(available.0 != self.queue.next_avail())
    }

    /// Walks a chain and appends it to `walked`.
    pub(crate) fn walk(
        &self,
        memory: &GuestMemory,
        head: u16,
        walked: &mut Walked,
    ) -> Result<Extent, WalkError> {
        let place = Place {
            table: self.queue.desc_table(),
            size: self.queue.size(),
            indirect: self.indirect,
        };
        walk(memory, &place, head, walked)
    }

    /// The position in the available ring, for [`rewind`](Self::rewind).
    pub(crate) fn taken(&self) -> u16 {
        self.queue.next_avail()
    }

    /// Makes the chains popped since [`taken`](Self::taken) available again. None of them may have
    /// been given back.
    pub(crate) fn rewind(&mut self, taken: u16) {
        self.queue.set_next_avail(taken);
    }

    /// Gives a chain back to the driver.
    pub(crate) fn give_back(
        &mut self,
        memory: &GuestMemory,
        head: u16,
        len: u32,
    ) -> Result<(), Error> {
        self.added = self.added.saturating_add(1);
        self.queue.add_used(memory, head, len)
    }

    /// Gives the chains of one packet back at once, so that the driver sees all of them or none
    /// (5.1.6.4).
    pub(crate) fn give_back_together(
        &mut self,
        memory: &GuestMemory,
        chains: &[(u16, u32)],
    ) -> Result<(), Error> {
        let Some((&(head, len), before)) = chains.split_last() else { return Ok(()) };
        let size = self.queue.size();
        let mut next = self.queue.next_used();
        for &(head, len) in before {
            let entry = u64::from(next % size) * USED_ENTRY;
            let at = self.queue.used_ring().checked_add(USED_RING + entry);
            let at = GuestAddress(at.ok_or(Error::AddressOverflow)?);
            let element = u64::from(head) | u64::from(len) << 32;
            memory.write_obj(element.to_le(), at).map_err(Error::GuestMemory)?;
            next = next.wrapping_add(1);
        }
        self.added = self.added.saturating_add(before.len() as u16);
        // Writing the index for the last chain makes all of them visible.
        self.queue.set_next_used(next);
        self.give_back(memory, head, len)
    }

    pub(crate) fn stop_notifications(&mut self, memory: &GuestMemory) -> Result<(), Error> {
        self.queue.disable_notification(memory)
    }

    /// Enables notifications again. Returns whether chains have become available in the meantime.
    pub(crate) fn want_notifications(&mut self, memory: &GuestMemory) -> Result<bool, Error> {
        self.queue.enable_notification(memory)
    }

    /// Whether the driver wants to be interrupted for the buffers given back since the last call
    /// (2.7.7, 2.7.10).
    pub(crate) fn take_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, Error> {
        let added = std::mem::take(&mut self.added);
        if added == 0 {
            return Ok(false);
        }
        // Write the used index before reading whether the driver wants an interrupt. Then either
        // the driver sees the buffers, or its request is seen here.
        fence(Ordering::SeqCst);
        if !self.queue.event_idx_enabled() {
            return Ok(self.load(memory, self.queue.avail_ring())? & NO_INTERRUPT == 0);
        }
        let behind = AVAIL_RING + u64::from(self.queue.size()) * AVAIL_ENTRY;
        let at = self.queue.avail_ring().checked_add(behind).ok_or(Error::AddressOverflow)?;
        let wanted = self.load(memory, at)?;
        Ok(self.queue.next_used().wrapping_sub(wanted).wrapping_sub(1) < added)
    }

    fn load(&self, memory: &GuestMemory, at: u64) -> Result<u16, Error> {
        let value: u16 =
            memory.load(GuestAddress(at), Ordering::Relaxed).map_err(Error::GuestMemory)?;
        Ok(u16::from_le(value))
    }

    pub(crate) fn save(&self) -> QueueSaved {
        self.queue.state().into()
    }

    /// Makes a ring from a saved state, which must have the same maximum size.
    pub(crate) fn restored(&self, saved: &QueueSaved) -> Result<Self, String> {
        if saved.max_size != self.max_size() {
            return Err(format!(
                "expected a largest size of {}, found {}",
                self.max_size(),
                saved.max_size
            ));
        }
        let queue = Queue::try_from(QueueState::from(*saved)).map_err(|error| error.to_string())?;
        Ok(Self { queue, added: 0, indirect: false })
    }
}
