//! Requests of a driver: from the available ring to the gate, and back to the used ring.

use io_gate::Outcome;
use io_gate::host::{ChainOutcome, InputOp, Origin, Performable, Request, lend_chain, take_back};

use super::{ROUNDS, VirtioSlot};
use crate::completion::{Completion, Interrupt, Kind, Performed};
use crate::guest_memory::{View, copy_in};

/// The result of one round over a queue.
enum Round {
    /// No chain is left.
    Empty,
    /// There may be more chains.
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
        // Requests of other queues may have ended too: their effects passed the open gate.
        self.interrupts()
    }

    /// Processes the available chains, under one hold of the ledger's lock.
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
            let mut walked = std::mem::take(&mut self.walked);
            walked.clear();
            let outcome = match ring.walk(memory, head, &mut walked) {
                Ok(_) => {
                    let view = View(memory);
                    let mut chain = lend_chain(&view, walked.readable, walked.writable);
                    let outcome = ledger
                        .chain_session(origin, |gate| device.process(queue, &mut chain, gate));
                    (walked.readable, walked.writable) = take_back(chain);
                    outcome.map_err(|error| error.to_string())
                }
                Err(error) => Err(error.to_string()),
            };
            self.walked = walked;
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
        // Effects that were staged before the ring was found broken are valid.
        let done = gate.end_staging(ledger, self.slot);
        let settled: Vec<Performable> =
            done.into_iter().map(|one| self.complete_one(one)).collect();
        self.gate.settle_all(settled);
        if let Some(error) = failed {
            return Err(error);
        }
        if stalled {
            // Ask for no notification: the settlement of requests resumes the queue.
            return Ok(Round::Empty);
        }
        let ring = &mut self.rings[usize::from(queue)];
        Ok(if ring.want_notifications(memory)? { Round::More } else { Round::Empty })
    }

    pub(super) fn end_all(&mut self, done: Vec<Performed>) -> Interrupt {
        let performed = done.into_iter().map(|one| Completion(Kind::Performed(one)));
        self.complete_all(performed)
    }

    /// Gives a chain back, and returns its request, which the caller settles. A checkpoint contains
    /// both steps or none, since the thread that runs this also takes the checkpoints.
    pub(super) fn complete_one(&mut self, done: Performed) -> Performable {
        if let Some((queue, head)) = done.chain()
            && done.request.record().id >= self.first_id
            && self.usable(queue)
            && let Err(error) = self.give_back(queue, head, &done)
        {
            let _ = self.broken(queue, &error);
        }
        done.request
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
        // Walk the chain again: the guest may have made it invalid in the meantime. Then write no
        // status.
        let mut walked = std::mem::take(&mut self.walked);
        walked.clear();
        let len = match ring.walk(memory, head, &mut walked) {
            Ok(_) => {
                let view = View(memory);
                let mut chain = lend_chain(&view, walked.readable, walked.writable);
                let len = self.device.complete(queue, &mut chain, outcome);
                (walked.readable, walked.writable) = take_back(chain);
                len
            }
            Err(error) => {
                let slot = self.slot;
                self.warnings.warn(|| {
                    format!("slot {slot}, virtqueue {queue}: chain {head} was changed while in use: {error}")
                });
                0
            }
        };
        self.walked = walked;
        ring.give_back(memory, head, len)
    }
}
