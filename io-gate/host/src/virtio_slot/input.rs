//! Input for a driver: from a backend into chains that it has made available.

use io_gate::host::lend_chain;

use super::{ROUNDS, VirtioSlot};
use crate::completion::Interrupt;
use crate::guest_memory::View;

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
            let consumed = self.fill_chain(index, &data)?;
            if consumed < data.len() {
                self.intakes[index].pending.extend_from_slice(&data[consumed..]);
            }
        };
        self.scratch = data;
        Ok(wanted)
    }

    /// Offers input to the device with the next chain; how much of it is done with.
    fn fill_chain(&mut self, index: usize, data: &[u8]) -> Result<usize, virtio_queue::Error> {
        let memory = self.gate.memory();
        let (port, queue) = (self.intakes[index].port, self.intakes[index].queue);
        let ring = &mut self.rings[usize::from(queue)];
        let Some(head) = ring.pop(memory)? else { return Ok(0) };
        let slot = self.slot;
        let walked = match ring.walk(memory, head) {
            Ok(walked) => walked,
            Err(error) => {
                self.warnings
                    .warn(|| format!("slot {slot}, virtqueue {queue}: bad chain {head}: {error}"));
                ring.give_back(memory, head, 0)?;
                return Ok(0);
            }
        };
        let view = View(memory);
        let mut chain = lend_chain(&view, walked.readable, walked.writable);
        let (used, consumed) = match self.device.intake(port, data, &mut chain) {
            Ok(intake) => (intake.used, intake.consumed),
            Err(error) => {
                self.warnings
                    .warn(|| format!("slot {slot}, virtqueue {queue}: input is dropped: {error}"));
                (0, data.len())
            }
        };
        ring.give_back(memory, head, used)?;
        Ok(consumed)
    }
}
