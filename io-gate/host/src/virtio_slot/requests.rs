//! Requests of a driver: from the available ring to the gate, and back to the used ring.

use io_gate::Outcome;
use io_gate::host::{ChainOutcome, InputOp, Origin, Request, lend_chain};

use super::{ROUNDS, VirtioSlot};
use crate::completion::{Completion, Interrupt, Kind, Performed};
use crate::guest_memory::{View, copy_in};

/// What one round over a queue has left.
enum Round {
    /// Nothing to do.
    Empty,
    /// There may be more.
    More,
}

impl VirtioSlot {
    pub(super) fn process_queue(&mut self, queue: u16) -> Interrupt {
        let size = u32::from(self.rings[usize::from(queue)].size());
        let mut left = size * ROUNDS;
        loop {
            match self.round(queue, &mut left) {
                Ok(Round::Empty) => break,
                Ok(Round::More) if left == 0 => {
                    self.gate.post_again(self.slot, queue);
                    break;
                }
                Ok(Round::More) => {}
                Err(error) => return self.broken(queue, &error),
            }
        }
        // What was let through may have ended requests of other queues too.
        let queues = 0..self.rings.len() as u16;
        queues.fold(Interrupt::NONE, |raised, queue| raised.or(self.interrupt(queue)))
    }

    /// Processes what is available, under one hold of the ledger's lock.
    fn round(&mut self, queue: u16, left: &mut u32) -> Result<Round, virtio_queue::Error> {
        let gate = self.gate.clone();
        let memory = gate.memory();
        let ring = &mut self.rings[usize::from(queue)];
        ring.stop_notifications(memory)?;
        let mut ledger = gate.ledger();
        let mut failed = None;
        let mut stalled = false;
        while *left > 0 {
            if gate.stalls(&ledger, self.slot, queue) {
                stalled = true;
                break;
            }
            let head = match ring.pop(memory) {
                Ok(Some(head)) => head,
                Ok(None) => break,
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            };
            *left -= 1;
            let origin = Origin::Chain { slot: self.slot, queue, head };
            let device = &mut self.device;
            let outcome = match ring.walk(memory, head) {
                Ok(walked) => {
                    let view = View(memory);
                    let mut chain = lend_chain(&view, walked.readable, walked.writable);
                    ledger
                        .chain_session(origin, |gate| device.process(queue, &mut chain, gate))
                        .map_err(|error| error.to_string())
                }
                Err(error) => Err(error.to_string()),
            };
            let given_back = match outcome {
                Ok(ChainOutcome::Waiting(_)) => Ok(()),
                Ok(ChainOutcome::Done(len)) => ring.give_back(memory, head, len),
                Err(reason) => {
                    let slot = self.slot;
                    self.warnings.warn(|| {
                        format!("slot {slot}, virtqueue {queue}: bad chain {head}: {reason}")
                    });
                    ring.give_back(memory, head, 0)
                }
            };
            if let Err(error) = given_back {
                failed = Some(error);
                break;
            }
        }
        // What was staged before a ring turned out to be broken still counts.
        let done = gate.end_staging(ledger, self.slot);
        for one in done {
            self.complete_one(one);
        }
        if let Some(error) = failed {
            return Err(error);
        }
        if stalled {
            // Without notifications: the release brings the queue back.
            return Ok(Round::Empty);
        }
        let ring = &mut self.rings[usize::from(queue)];
        Ok(if ring.want_notifications(memory)? { Round::More } else { Round::Empty })
    }

    pub(super) fn complete_all(&mut self, done: Vec<Performed>) -> Interrupt {
        let mut raised = Interrupt::NONE;
        for one in done {
            raised = raised.or(self.complete(Completion(Kind::Performed(one))));
        }
        raised
    }

    /// Gives a chain back. The request is settled with it, in the same step as far as a
    /// checkpoint can tell: both are done on the thread that takes checkpoints.
    pub(super) fn complete_one(&mut self, done: Performed) {
        if let Some((queue, head)) = done.chain()
            && done.request.record().id >= self.life
            && self.usable(queue)
            && let Err(error) = self.give_back(queue, head, &done)
        {
            let _ = self.broken(queue, &error);
        }
        self.gate.settle(done);
    }

    fn give_back(
        &mut self,
        queue: u16,
        head: u16,
        done: &Performed,
    ) -> Result<(), virtio_queue::Error> {
        let memory = self.gate.memory();
        let ring = &mut self.rings[usize::from(queue)];
        let mut outcome = done.outcome;
        if let (Outcome::Success(_), Request::Input(op)) = (outcome, &done.request.record().request)
        {
            let (InputOp::BlockRead { into, .. } | InputOp::Entropy { into }) = op;
            if copy_in(memory, into.guest_ranges(), &done.data).is_err() {
                outcome = Outcome::Failed;
            }
        }
        // The guest may have changed the chain in the meantime: then nobody is told the status.
        let len = match ring.walk(memory, head) {
            Ok(walked) => {
                let view = View(memory);
                let mut chain = lend_chain(&view, walked.readable, walked.writable);
                self.device.complete(queue, &mut chain, outcome)
            }
            Err(error) => {
                let slot = self.slot;
                self.warnings.warn(|| {
                    format!("slot {slot}, virtqueue {queue}: chain {head} was changed while in use: {error}")
                });
                0
            }
        };
        ring.give_back(memory, head, len)
    }
}
