//! The shared storage: a cache that loses unflushed writes, a fence by term (the second line of
//! P2), and requests that arrive late, even after their sender has died.

use std::collections::HashMap;

use io_gate::host::Performable;

use crate::guest::{SECTORS, Tag};
use crate::random::Random;

#[derive(Clone, Debug)]
pub(crate) enum Operation {
    /// Carries the guest's number for the write.
    Write {
        sector: usize,
        tag: Tag,
        serial: u64,
    },
    Flush,
    Read {
        sector: usize,
    },
}

/// A request in transit to the storage.
pub(crate) struct Landing {
    pub(crate) process: u64,
    pub(crate) node: usize,
    pub(crate) term: u64,
    pub(crate) operation: Operation,
    pub(crate) request: Performable,
    pub(crate) lands: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StorageAnswer {
    Done,
    Read(Tag),
    Full,
    /// A later term has fenced the sender off.
    Fenced,
}

#[derive(Default)]
pub(crate) struct Storage {
    pub(crate) content: [Tag; SECTORS],
    pub(crate) durable: [Tag; SECTORS],
    /// Writes of earlier terms are refused.
    pub(crate) term: u64,
    pub(crate) full_until: u64,
    pub(crate) landing: Vec<Landing>,
    /// Used only if a deliberate bug makes writes complete before they are stored.
    pub(crate) late: Vec<(u64, Operation)>,
    /// The guest's order of the performed writes.
    order: HashMap<Tag, u64>,
    /// For each sector, the last tag that a guest saw flushed.
    flushed: [Tag; SECTORS],
}

impl Storage {
    pub(crate) fn take(&mut self, now: u64, term: u64, operation: &Operation) -> StorageAnswer {
        if term < self.term && !deliberate!(StorageWithoutTerm) {
            return StorageAnswer::Fenced;
        }
        match *operation {
            Operation::Read { sector } => StorageAnswer::Read(self.content[sector]),
            Operation::Flush => {
                self.durable = self.content;
                StorageAnswer::Done
            }
            Operation::Write { .. } if self.full_until > now => StorageAnswer::Full,
            Operation::Write { sector, tag, serial } => {
                self.order.insert(tag, serial);
                self.content[sector] = tag;
                StorageAnswer::Done
            }
        }
    }

    fn age(&self, tag: Tag) -> u64 {
        self.order.get(&tag).copied().unwrap_or(0)
    }

    /// P3: what a guest saw flushed is durable.
    pub(crate) fn saw_flushed(&mut self, covers: &[Tag; SECTORS]) {
        for (sector, tag) in covers.iter().enumerate() {
            self.flushed[sector] = *tag;
            assert!(
                self.age(self.durable[sector]) >= self.age(*tag),
                "P3: the guest saw a flush, but sector {sector} is not durable"
            );
        }
    }

    /// All power is lost: unflushed writes may be gone.
    pub(crate) fn lose_power(&mut self, random: &mut Random) {
        for sector in 0..SECTORS {
            if random.one_in(2) {
                self.content[sector] = self.durable[sector];
            }
            let (found, flushed) = (self.content[sector], self.flushed[sector]);
            assert!(
                self.age(found) >= self.age(flushed),
                "P3: sector {sector} was flushed, and is lost"
            );
        }
    }
}
