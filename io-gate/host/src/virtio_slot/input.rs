//! Input for a driver: from a backend into the driver's available chains (virtio 1.2, 5.1.6.4 for
//! frames in several chains).

use io_gate::Port;
use io_gate::host::{lend_merged, take_back};

use super::{ROUNDS, VirtioSlot};
use crate::completion::Interrupt;
use crate::guest_memory::View;

/// The result of offering input to a driver.
enum Filled {
    /// This many bytes were consumed.
    Consumed(usize),
    /// Nothing was consumed. There is not enough room, and the driver notifies when it adds more.
    NoRoom,
    /// Nothing was consumed. There was not enough room, but the driver has added some since then.
    TryAgain,
}

/// The result of looking for room.
enum Room {
    /// There are enough chains.
    Enough,
    /// There is an invalid chain. It has gone back to the driver.
    Bad,
    /// The available chains are too few.
    Short {
        /// Whether the chains use all descriptors of the ring, so that no more chains can come.
        all: bool,
    },
}

impl VirtioSlot {
    pub(super) fn take_input_of(&mut self, queue: u16) -> Interrupt {
        let mut raised = Interrupt::NONE;
        for index in 0..self.intakes.len() {
            if self.intakes[index].queues.contains(&queue) {
                raised = raised.or(self.take_input(index));
            }
        }
        raised
    }

    pub(super) fn take_input(&mut self, index: usize) -> Interrupt {
        let port = self.intakes[index].port;
        match self.move_input(index) {
            Ok(wanted) => {
                self.gate.want_input(self.slot, port, wanted);
                self.interrupts()
            }
            Err((queue, error)) => self.broken(queue, &error),
        }
    }

    /// Moves waiting input into available chains. Returns whether more input is wanted. No more is
    /// wanted while the driver has no room: its next notification calls this again.
    fn move_input(&mut self, index: usize) -> Result<bool, (u16, virtio_queue::Error)> {
        let queues = std::mem::take(&mut self.intakes[index].queues);
        let mut data = std::mem::take(&mut self.scratch);
        let wanted = self.move_through(index, &queues, &mut data);
        self.scratch = data;
        self.intakes[index].queues = queues;
        wanted
    }

    fn move_through(
        &mut self,
        index: usize,
        queues: &[u16],
        data: &mut Vec<u8>,
    ) -> Result<bool, (u16, virtio_queue::Error)> {
        let gate = self.gate.clone();
        let memory = gate.memory();
        let port = self.intakes[index].port;
        // At least one queue is usable: the callers check this.
        let first = queues.iter().copied().find(|queue| self.usable(*queue)).unwrap_or_default();
        let mut left = 0;
        for &queue in queues {
            if self.usable(queue) {
                let ring = &mut self.rings[usize::from(queue)];
                ring.stop_notifications(memory).map_err(|error| (queue, error))?;
                left = left.max(u32::from(ring.size()) * ROUNDS);
            }
        }
        loop {
            // Take input only if a queue has room.
            if !self.has_room(queues)? {
                return Ok(false);
            }
            if left == 0 {
                gate.post_again(self.slot, first);
                return Ok(true);
            }
            left -= 1;
            let pending = &mut self.intakes[index].pending;
            if !pending.is_empty() {
                std::mem::swap(data, pending);
                pending.clear();
            } else if !gate.receive(self.slot, port, data) {
                return Ok(true);
            }
            let steered = self.device.steer(port, data);
            let steered = steered.filter(|queue| queues.contains(queue) && self.usable(*queue));
            let queue = steered.unwrap_or(first);
            let filled = self.fill(index, queue, data).map_err(|error| (queue, error))?;
            let consumed = if let Filled::Consumed(count) = filled { count } else { 0 };
            if consumed < data.len() {
                self.intakes[index].pending.extend_from_slice(&data[consumed..]);
            }
            if let Filled::NoRoom = filled {
                return Ok(false);
            }
        }
    }

    /// Whether any of these queues has a chain. If none has, each asks for a notification.
    fn has_room(&mut self, queues: &[u16]) -> Result<bool, (u16, virtio_queue::Error)> {
        let gate = self.gate.clone();
        let memory = gate.memory();
        for &queue in queues {
            let ring = &self.rings[usize::from(queue)];
            if self.usable(queue) && ring.has_available(memory).map_err(|error| (queue, error))? {
                return Ok(true);
            }
        }
        let mut room = false;
        for &queue in queues {
            if self.usable(queue) {
                let ring = &mut self.rings[usize::from(queue)];
                room |= ring.want_notifications(memory).map_err(|error| (queue, error))?;
            }
        }
        Ok(room)
    }

    /// Offers input to the device with the next chain, or with as many chains as hold all of it.
    fn fill(
        &mut self,
        index: usize,
        queue: u16,
        data: &[u8],
    ) -> Result<Filled, virtio_queue::Error> {
        let port = self.intakes[index].port;
        let needed = if self.device.merges_input(port) { data.len() } else { 0 };
        let mut heads = std::mem::take(&mut self.heads);
        heads.clear();
        self.walked.clear();
        let filled = self.fill_with(port, usize::from(queue), data, needed, &mut heads);
        self.heads = heads;
        filled
    }

    fn fill_with(
        &mut self,
        port: Port,
        queue: usize,
        data: &[u8],
        needed: usize,
        heads: &mut Vec<(u16, u32)>,
    ) -> Result<Filled, virtio_queue::Error> {
        let gate = self.gate.clone();
        let memory = gate.memory();
        let before = self.rings[queue].taken();
        match self.find_room(queue, needed, heads)? {
            Room::Enough => {}
            Room::Bad => return Ok(Filled::Consumed(0)),
            Room::Short { all } => {
                // Ask for a notification of chains after the available ones, which are not enough.
                let more = self.rings[queue].want_notifications(memory)?;
                self.rings[queue].rewind(before);
                if more {
                    return Ok(Filled::TryAgain);
                }
                if !all {
                    return Ok(Filled::NoRoom);
                }
                let slot = self.slot;
                self.warnings.warn(|| {
                    format!(
                        "slot {slot}, virtqueue {queue}: {} bytes of input are dropped: they do not fit in all chains \
                         together",
                        data.len()
                    )
                });
                return Ok(Filled::Consumed(data.len()));
            }
        }
        let view = View(memory);
        let walked = std::mem::take(&mut self.walked);
        let merged = heads.len() as u16;
        let mut chain = lend_merged(&view, walked.readable, walked.writable, merged);
        let taken = self.device.intake(port, data, &mut chain);
        (self.walked.readable, self.walked.writable) = take_back(chain);
        let (used, consumed) = match taken {
            Ok(intake) => (intake.used, intake.consumed),
            Err(error) => {
                let slot = self.slot;
                self.warnings
                    .warn(|| format!("slot {slot}, virtqueue {queue}: input is dropped: {error}"));
                (0, data.len())
            }
        };
        // Fill all chains but the last (5.1.6.4).
        let mut left = used;
        for (_, room) in heads.iter_mut() {
            *room = left.min(*room);
            left -= *room;
        }
        self.rings[queue].give_back_together(memory, heads)?;
        Ok(Filled::Consumed(consumed))
    }

    /// Takes chains until there is room for `needed` bytes, but at least one chain. Collects the
    /// head and the room of each.
    fn find_room(
        &mut self,
        queue: usize,
        needed: usize,
        heads: &mut Vec<(u16, u32)>,
    ) -> Result<Room, virtio_queue::Error> {
        let memory = self.gate.memory();
        let ring = &mut self.rings[queue];
        let (mut room, mut descriptors) = (0_usize, 0_u32);
        while room < needed || heads.is_empty() {
            let Some(head) = ring.pop(memory)? else {
                return Ok(Room::Short { all: descriptors >= u32::from(ring.size()) });
            };
            match ring.walk(memory, head, &mut self.walked) {
                Ok(extent) => {
                    heads.push((head, extent.room));
                    room += extent.room as usize;
                    descriptors += u32::from(extent.descriptors);
                }
                Err(error) => {
                    let slot = self.slot;
                    self.warnings.warn(|| {
                        format!("slot {slot}, virtqueue {queue}: bad chain {head}: {error}")
                    });
                    // The chains taken before it go back unused: no data was written to them.
                    for (head, _) in heads.drain(..) {
                        ring.give_back(memory, head, 0)?;
                    }
                    ring.give_back(memory, head, 0)?;
                    return Ok(Room::Bad);
                }
            }
        }
        Ok(Room::Enough)
    }
}
