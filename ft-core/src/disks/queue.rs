//! The standby's queue (R1, R2, R5, R7): entries of committed checkpoints, performed in order and
//! exactly once, with each flush as a barrier. The queue keeps entries of an uncommitted checkpoint
//! apart, and drops them together with that checkpoint.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::{Entry, Lane, Operation, Payload, Reach, Seq, Ticket};
use crate::{Epoch, deliberate};

/// The primary sent entries that the queue cannot take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// An entry is missing, or was received before.
    #[error("the list of disk operations has a gap: expected entry {}, found entry {}", expected.0, found.0)]
    Gap {
        /// The next entry.
        expected: Seq,
        /// The entry received.
        found: Seq,
    },
    /// The entries exceed the queue's bound.
    #[error("too many disk operations wait: expected at most {limit} bytes, found {found}")]
    Full {
        /// The bound.
        limit: u64,
        /// Bytes that the queue would have.
        found: u64,
    },
    /// A payload is in the memory of a checkpoint that does not have it.
    #[error("entry {}: its bytes are at {address:#x} of the checkpoint's memory, expected an address within guest memory", seq.0)]
    Memory {
        /// The entry.
        seq: Seq,
        /// Where.
        address: u64,
    },
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Queue {
    limit: u64,
    /// Entries of checkpoints that are not committed.
    received: VecDeque<(Epoch, Vec<Entry>)>,
    lane: Lane<Entry>,
    last: Seq,
    bytes: u64,
    durable: Seq,
}

/// Reads the bytes of an extent from the memory of the checkpoint that was just committed.
type Memory<'a> = &'a dyn Fn(u64, u64) -> Option<Vec<u8>>;

impl Queue {
    /// An empty queue behind the entry `last`, with the primary's bound on bytes.
    #[must_use]
    pub fn new(limit: u64, last: Seq) -> Self {
        let lane = Lane::of_standby(last);
        Self { limit, received: VecDeque::new(), lane, last, bytes: 0, durable: last }
    }

    /// Entries have come: of a checkpoint, or before the first one.
    ///
    /// # Errors
    /// When they are not the next ones, or too many.
    pub fn receive(&mut self, epoch: Option<Epoch>, entries: Vec<Entry>) -> Result<(), QueueError> {
        let (mut last, mut bytes) = (self.last, self.bytes);
        for entry in &entries {
            let expected = last.next();
            if entry.seq != expected {
                return Err(QueueError::Gap { expected, found: entry.seq });
            }
            (last, bytes) = (expected, bytes.saturating_add(entry.operation.bytes()));
            // The first entry always has room, as on the other side.
            if bytes > self.limit && self.bytes > 0 {
                return Err(QueueError::Full { limit: self.limit, found: bytes });
            }
        }
        (self.last, self.bytes) = (last, bytes);
        match epoch {
            Some(epoch) => self.received.push_back((epoch, entries)),
            None => self.perform(entries, &|_, _| None)?,
        }
        Ok(())
    }

    /// The checkpoint of `epoch` is committed and applied, and the next one is not. Payloads that
    /// are in its memory are copied out now (R2).
    ///
    /// # Errors
    /// When a payload is not there.
    pub fn commit(&mut self, epoch: Epoch, memory: Memory<'_>) -> Result<(), QueueError> {
        while let Some((_, entries)) = self.received.pop_front_if(|(of, _)| *of <= epoch) {
            self.perform(entries, memory)?;
        }
        Ok(())
    }

    fn perform(&mut self, entries: Vec<Entry>, memory: Memory<'_>) -> Result<(), QueueError> {
        for mut entry in entries {
            if let Operation::Write { extent, payload } = &mut entry.operation
                && let Payload::Memory(address) = *payload
                && !deliberate!(PayloadOfNextEpoch)
            {
                let missing = QueueError::Memory { seq: entry.seq, address };
                *payload = Payload::Inline(memory(address, extent.len).ok_or(missing)?);
            }
            let reach = match &entry.operation {
                Operation::Flush => Reach::Flush,
                Operation::Compare { extent, .. } => Reach::Reads(*extent),
                operation => operation.extent().map_or(Reach::Flush, Reach::Changes),
            };
            self.lane.push(Some(entry.seq), reach, entry);
        }
        Ok(())
    }

    /// The link is lost, or the standby takes over: drops the entries that are not committed.
    pub fn drop_uncommitted(&mut self) {
        for (_, entries) in self.received.drain(..) {
            self.bytes -= entries.iter().map(|entry| entry.operation.bytes()).sum::<u64>();
            if let Some(first) = entries.first() {
                self.last = self.last.min(Seq(first.seq.0 - 1));
            }
        }
    }

    /// The entries that may begin now.
    pub fn startable(&self) -> impl Iterator<Item = Ticket> + '_ {
        self.lane.startable()
    }

    /// The entry.
    #[must_use]
    pub fn get(&self, ticket: Ticket) -> Option<&Entry> {
        self.lane.get(ticket)
    }

    /// An entry begins.
    pub fn start(&mut self, ticket: Ticket) -> Option<&Entry> {
        self.lane.start(ticket).map(|entry| &*entry)
    }

    /// An entry has succeeded. A flush makes every entry before it durable.
    pub fn done(&mut self, ticket: Ticket) {
        if let Some(entry) = self.lane.get(ticket) {
            self.bytes = self.bytes.saturating_sub(entry.operation.bytes());
            if entry.operation == Operation::Flush {
                self.durable = self.durable.max(entry.seq);
            }
        }
        self.lane.done(ticket);
    }

    /// An entry has failed (R5).
    pub fn fail(&mut self, ticket: Ticket) {
        self.lane.fail(ticket);
    }

    /// A sync of the driver's own has failed (R5). No later one counts.
    pub fn sync_failed(&mut self) {
        self.lane.sync_failed();
    }

    /// A sync has succeeded that began when every entry up to `seq` of this queue was performed. Do
    /// not pass a sync that began before this queue: its number belongs to another list.
    pub fn synced(&mut self, seq: Seq) {
        if !self.lane.has_failed() {
            self.durable = self.durable.max(seq);
        }
    }

    /// Whether an entry is performed and not durable.
    #[must_use]
    pub fn wants_sync(&self) -> bool {
        self.lane.performed() > self.durable
    }

    /// The last entry up to which all are performed.
    #[must_use]
    pub fn performed(&self) -> Seq {
        self.lane.performed()
    }

    /// The last entry up to which all are durable.
    #[must_use]
    pub fn durable(&self) -> Seq {
        if deliberate!(DurableWhenPerformed) { self.lane.performed() } else { self.durable }
    }

    /// Bytes that are not performed.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The last entry received.
    #[must_use]
    pub fn last(&self) -> Seq {
        self.last
    }

    /// Whether every committed entry is performed.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.lane.is_empty()
    }

    /// The lane with what is left to perform, at a takeover: the guest's new operations come behind
    /// it.
    #[must_use]
    pub fn into_lane(mut self) -> Lane<Entry> {
        self.drop_uncommitted();
        if deliberate!(QueueDropped) {
            return Lane::of_standby(self.last);
        }
        self.lane.adopt();
        self.lane
    }
}
