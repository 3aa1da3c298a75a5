//! Input for a driver: from a backend into chains that it has made available.

use io_gate::host::{lend_merged, take_back};

use super::{ROUNDS, VirtioSlot};
use crate::completion::Interrupt;
use crate::guest_memory::View;

/// What became of input that was offered to a driver.
enum Filled {
    /// This much of it is done with.
    Consumed(usize),
    /// Nothing: there is not enough room for it, and the driver will notify of more.
    NoRoom,
    /// Nothing: there was not enough room, and the driver has made more available since.
    TryAgain,
}

/// What a look for room has found.
enum Room {
    /// Chains enough.
    Enough,
    /// A chain that is none; it went back.
    Bad,
    /// The available chains are too few.
    Short {
        /// More cannot come: the driver has no descriptors left.
        all: bool,
    },
}

impl VirtioSlot {
    pub(super) fn take_input_of(&mut self, queue: u16) -> Interrupt {
        let mut raised = Interrupt::NONE;
        for index in 0..self.intakes.len() {
            if self.intakes[index].queue == queue {
                raised = raised.or(self.take_input(index));
            }
        }
        raised
    }

    pub(super) fn take_input(&mut self, index: usize) -> Interrupt {
        let queue = self.intakes[index].queue;
        let port = self.intakes[index].port;
        match self.move_input(index) {
            Ok(wanted) => {
                self.gate.want_input(self.slot, port, wanted);
                self.interrupt(queue)
            }
            Err(error) => self.broken(queue, &error),
        }
    }

    /// Moves waiting input into available chains. Whether more input is wanted: not while the
    /// driver has no room; its next notification asks again.
    fn move_input(&mut self, index: usize) -> Result<bool, virtio_queue::Error> {
        let gate = self.gate.clone();
        let memory = gate.memory();
        let (port, queue) = (self.intakes[index].port, self.intakes[index].queue);
        let size = self.rings[usize::from(queue)].size();
        let mut left = u32::from(size) * ROUNDS;
        let mut data = std::mem::take(&mut self.scratch);
        self.rings[usize::from(queue)].stop_notifications(memory)?;
        let wanted = loop {
            let ring = &mut self.rings[usize::from(queue)];
            if !ring.has_available(memory)? && !ring.want_notifications(memory)? {
                break false;
            }
            if left == 0 {
                gate.post_again(self.slot, queue);
                break true;
            }
            left -= 1;
            let pending = &mut self.intakes[index].pending;
            if !pending.is_empty() {
                std::mem::swap(&mut data, pending);
                pending.clear();
            } else if !gate.receive(self.slot, port, &mut data) {
                break true;
            }
            let filled = self.fill(index, &data)?;
            let consumed = if let Filled::Consumed(count) = filled { count } else { 0 };
            if consumed < data.len() {
                self.intakes[index].pending.extend_from_slice(&data[consumed..]);
            }
            if let Filled::NoRoom = filled {
                break false;
            }
        };
        self.scratch = data;
        Ok(wanted)
    }

    /// Offers input to the device with the next chain, or with as many as it takes to hold all of it.
    fn fill(&mut self, index: usize, data: &[u8]) -> Result<Filled, virtio_queue::Error> {
        let port = self.intakes[index].port;
        let needed = if self.device.merges_input(port) { data.len() } else { 0 };
        let mut heads = std::mem::take(&mut self.heads);
        heads.clear();
        self.walked.clear();
        let filled = self.fill_with(index, data, needed, &mut heads);
        self.heads = heads;
        filled
    }

    fn fill_with(
        &mut self,
        index: usize,
        data: &[u8],
        needed: usize,
        heads: &mut Vec<(u16, u32)>,
    ) -> Result<Filled, virtio_queue::Error> {
        let gate = self.gate.clone();
        let memory = gate.memory();
        let (port, queue) = (self.intakes[index].port, usize::from(self.intakes[index].queue));
        let before = self.rings[queue].taken();
        match self.find_room(queue, needed, heads)? {
            Room::Enough => {}
            Room::Bad => return Ok(Filled::Consumed(0)),
            Room::Short { all } => {
                // Asked for behind what is there already: that is not enough.
                let more = self.rings[queue].want_notifications(memory)?;
                self.rings[queue].untake(before);
                if more {
                    return Ok(Filled::TryAgain);
                }
                if !all {
                    return Ok(Filled::NoRoom);
                }
                let slot = self.slot;
                self.warnings.warn(|| {
                    format!(
                        "slot {slot}, virtqueue {queue}: {} bytes of input are dropped: all chains together have no room for them",
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
        // All but the last are used to their ends (5.1.6.4).
        let mut left = used;
        for (_, room) in heads.iter_mut() {
            *room = left.min(*room);
            left -= *room;
        }
        self.rings[queue].give_back_together(memory, heads)?;
        Ok(Filled::Consumed(consumed))
    }

    /// Takes chains until there is room for `needed` bytes, at least one: their heads and the room of each.
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
                    // Nothing is put behind it, so what was taken before it goes back as it is.
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
