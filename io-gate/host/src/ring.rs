//! One virtqueue of a slot: what virtio-queue keeps, and what a guest that breaks it is told.

use std::sync::atomic::Ordering;

use virtio_queue::{Error, Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::chain_walk::{WalkError, Walked, walk};
use crate::guest_memory::GuestMemory;
use crate::slot_state::QueueSaved;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` (virtio 1.2, 2.7.6).
const NO_INTERRUPT: u16 = 1;

/// A virtqueue.
pub(crate) struct Ring {
    queue: Queue,
    /// Whether used buffers were added of which the driver was not yet told.
    used: bool,
}

impl Ring {
    pub(crate) fn new(max_size: u16) -> Self {
        let queue =
            Queue::new(max_size).expect("a device's queue sizes are powers of two up to 32768");
        Self { queue, used: false }
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
        self.used = false;
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

    pub(crate) fn walk(&self, memory: &GuestMemory, head: u16) -> Result<Walked, WalkError> {
        walk(memory, self.queue.desc_table(), self.queue.size(), head)
    }

    /// Gives a chain back to the driver.
    pub(crate) fn give_back(
        &mut self,
        memory: &GuestMemory,
        head: u16,
        len: u32,
    ) -> Result<(), Error> {
        self.used = true;
        self.queue.add_used(memory, head, len)
    }

    pub(crate) fn stop_notifications(&mut self, memory: &GuestMemory) -> Result<(), Error> {
        self.queue.disable_notification(memory)
    }

    /// Wants to be notified again; whether chains have become available in the meantime.
    pub(crate) fn want_notifications(&mut self, memory: &GuestMemory) -> Result<bool, Error> {
        self.queue.enable_notification(memory)
    }

    /// Whether the driver wants to be interrupted for the buffers given back since the last call.
    pub(crate) fn take_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, Error> {
        if !std::mem::take(&mut self.used) {
            return Ok(false);
        }
        // Has to be called in any case: it remembers how far the driver was told.
        let wanted = self.queue.needs_notification(memory)?;
        if self.queue.event_idx_enabled() {
            return Ok(wanted);
        }
        let flags: u16 = memory
            .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
            .map_err(Error::GuestMemory)?;
        Ok(u16::from_le(flags) & NO_INTERRUPT == 0)
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
        Ok(Self { queue, used: false })
    }
}
