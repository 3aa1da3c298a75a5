//! One virtqueue of a slot: what virtio-queue keeps, and what a guest that breaks it is told.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Error, Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::chain_walk::{Extent, WalkError, Walked, walk};
use crate::guest_memory::GuestMemory;
use crate::slot_state::QueueSaved;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` (virtio 1.2, 2.7.6).
const NO_INTERRUPT: u16 = 1;
// Where things are in the two rings (2.7.6, 2.7.8).
const AVAIL_RING: u64 = 4;
const AVAIL_ENTRY: u64 = 2;
const USED_RING: u64 = 4;
const USED_ENTRY: u64 = 8;

/// A virtqueue.
pub(crate) struct Ring {
    queue: Queue,
    /// Used buffers that were added and of which the driver was not yet told.
    added: u16,
}

impl Ring {
    pub(crate) fn new(max_size: u16) -> Self {
        let queue =
            Queue::new(max_size).expect("a device's queue sizes are powers of two up to 32768");
        Self { queue, added: 0 }
    }

    pub(crate) fn queue(&mut self) -> &mut Queue {
        &mut self.queue
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
    }

    /// Whether everything that it consists of lies in guest memory.
    pub(crate) fn check(&self, memory: &GuestMemory) -> Result<(), String> {
        if self.queue.is_valid(memory) {
            return Ok(());
        }
        Err(format!(
            "expected its rings in guest memory, found descriptors at {:#x}, available ring at {:#x}, used ring at {:#x}, size {}",
            self.queue.desc_table(),
            self.queue.avail_ring(),
            self.queue.used_ring(),
            self.queue.size()
        ))
    }

    /// The head of the next available chain.
    pub(crate) fn pop(&mut self, memory: &GuestMemory) -> Result<Option<u16>, Error> {
        let mut available = self.queue.iter(memory)?;
        Ok(available.next().map(|chain| chain.head_index()))
    }

    /// Whether a chain is available.
    pub(crate) fn has_available(&self, memory: &GuestMemory) -> Result<bool, Error> {
        let available = self.queue.avail_idx(memory, Ordering::Acquire)?;
        Ok(available.0 != self.queue.next_avail())
    }

    /// Walks a chain, and adds it to `walked`.
    pub(crate) fn walk(
        &self,
        memory: &GuestMemory,
        head: u16,
        walked: &mut Walked,
    ) -> Result<Extent, WalkError> {
        walk(memory, self.queue.desc_table(), self.queue.size(), head, walked)
    }

    /// How far the available ring was taken, for [`untake`](Self::untake).
    pub(crate) fn taken(&self) -> u16 {
        self.queue.next_avail()
    }

    /// Chains that were popped since [`taken`](Self::taken) are available again. They must not have been
    /// given back.
    pub(crate) fn untake(&mut self, taken: u16) {
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

    /// Gives chains back, none of which the driver sees before it sees all: those of one packet
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
        // The index, which shows them all, is written with the last.
        self.queue.set_next_used(next);
        self.give_back(memory, head, len)
    }

    pub(crate) fn stop_notifications(&mut self, memory: &GuestMemory) -> Result<(), Error> {
        self.queue.disable_notification(memory)
    }

    /// Wants to be notified again; whether chains have become available in the meantime.
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
        // The used index is out before what the driver wants is read: either it sees the buffers, or
        // its wish is seen here.
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

    /// The ring of a saved state, which has to be of this one's largest size.
    pub(crate) fn restored(&self, saved: &QueueSaved) -> Result<Self, String> {
        if saved.max_size != self.max_size() {
            return Err(format!(
                "expected a largest size of {}, found {}",
                self.max_size(),
                saved.max_size
            ));
        }
        let queue = Queue::try_from(QueueState::from(*saved)).map_err(|error| error.to_string())?;
        Ok(Self { queue, added: 0 })
    }
}
