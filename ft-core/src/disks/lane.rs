//! The order in which a side performs operations on its images (R1).
//!
//! - Overlapping operations run in the order of the list; others may run at the same time.
//! - A flush waits for every change before it.
//! - On the standby, each change also waits for the flushes before it. A power loss then leaves the
//!   image as it was at some flush, with some of the writes after it.

use alloc::collections::VecDeque;

use super::{Extent, Seq};
use crate::deliberate;

/// What an operation touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The operation reads these bytes.
    Reads(Extent),
    /// The operation changes these bytes.
    Changes(Extent),
    /// The operation makes all changes before it durable.
    Flush,
}

/// The name of an operation in its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

#[derive(Clone, Debug)]
struct Slot<T> {
    ticket: Ticket,
    seq: Option<Seq>,
    reach: Reach,
    running: bool,
    done: bool,
    item: T,
}

/// See the module. The bounds of the list and of the queue bound its length.
#[derive(Clone, Debug)]
pub struct Lane<T> {
    slots: VecDeque<Slot<T>>,
    /// Changes wait for flushes: the standby's lane.
    ordered: bool,
    /// The standby has taken over. The lane becomes a primary's lane once it is empty.
    adopted: bool,
    next: u64,
    /// The last entry that was pushed.
    last: Seq,
    /// R5: the first failure is final.
    failed: bool,
}

impl<T> Lane<T> {
    /// The primary's lane. A write does not wait for a flush before it: a guest that needs this
    /// order waits for the flush itself.
    #[must_use]
    pub fn of_primary(last: Seq) -> Self {
        Self {
            slots: VecDeque::new(),
            ordered: false,
            adopted: false,
            next: 0,
            last,
            failed: false,
        }
    }

    /// The standby's lane.
    #[must_use]
    pub fn of_standby(last: Seq) -> Self {
        Self { ordered: true, ..Self::of_primary(last) }
    }

    /// The standby has taken over: the guest's new operations are ordered behind those that are
    /// left to perform.
    pub fn adopt(&mut self) {
        self.adopted = true;
    }

    /// The same lane with other items.
    pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> Lane<U> {
        let Self { slots, ordered, adopted, next, last, failed } = self;
        let slots = slots.into_iter().map(|slot| {
            let Slot { ticket, seq, reach, running, done, item } = slot;
            Slot { ticket, seq, reach, running, done, item: f(item) }
        });
        Lane { slots: slots.collect(), ordered, adopted, next, last, failed }
    }

    /// The operations that are not finished, in order, with their entries.
    pub fn unfinished(&self) -> impl Iterator<Item = (Ticket, Option<Seq>)> + '_ {
        self.slots.iter().filter(|slot| !slot.done).map(|slot| (slot.ticket, slot.seq))
    }

    /// Adds an operation behind all others; `seq` if it is an entry of the list.
    pub fn push(&mut self, seq: Option<Seq>, reach: Reach, item: T) -> Ticket {
        if self.adopted && self.slots.is_empty() {
            (self.ordered, self.adopted) = (false, false);
        }
        self.next += 1;
        let ticket = Ticket(self.next);
        self.last = seq.unwrap_or(self.last);
        self.slots.push_back(Slot { ticket, seq, reach, running: false, done: false, item });
        ticket
    }

    /// The operations that may begin now, in order.
    pub fn startable(&self) -> impl Iterator<Item = Ticket> + '_ {
        let waiting = |at: &usize| !self.slots[*at].running && !self.slots[*at].done;
        let free = move |at: &usize| waiting(at) && !self.failed && self.is_free(*at);
        (0..self.slots.len()).filter(free).map(|at| self.slots[at].ticket)
    }

    fn is_free(&self, at: usize) -> bool {
        let this = &self.slots[at].reach;
        !self.slots.iter().take(at).any(|before| !before.done && self.waits(this, &before.reach))
    }

    fn waits(&self, this: &Reach, before: &Reach) -> bool {
        match (this, before) {
            (Reach::Reads(_), Reach::Reads(_) | Reach::Flush) => false,
            (Reach::Reads(this), Reach::Changes(before))
            | (Reach::Changes(this), Reach::Reads(before) | Reach::Changes(before)) => {
                this.overlaps(before) && !(self.ordered && deliberate!(OverlapSwaps))
            }
            (Reach::Flush, Reach::Reads(_)) => false,
            (Reach::Flush, _) => true,
            (Reach::Changes(_), Reach::Flush) => self.ordered && !deliberate!(PastFlush),
        }
    }

    fn slot(&mut self, ticket: Ticket) -> Option<&mut Slot<T>> {
        self.slots.iter_mut().find(|slot| slot.ticket == ticket)
    }

    /// Begins the operation.
    pub fn start(&mut self, ticket: Ticket) -> Option<&mut T> {
        let slot = self.slot(ticket)?;
        slot.running = true;
        Some(&mut slot.item)
    }

    /// The operation.
    #[must_use]
    pub fn get(&self, ticket: Ticket) -> Option<&T> {
        self.slots.iter().find(|slot| slot.ticket == ticket).map(|slot| &slot.item)
    }

    /// The number of the operation's entry, if it is an entry of the list.
    #[must_use]
    pub fn seq(&self, ticket: Ticket) -> Option<Seq> {
        self.slots.iter().find(|slot| slot.ticket == ticket).and_then(|slot| slot.seq)
    }

    /// The operation has succeeded.
    pub fn done(&mut self, ticket: Ticket) {
        if let Some(slot) = self.slot(ticket) {
            slot.done = true;
        }
        while self.slots.front().is_some_and(|slot| slot.done) {
            self.slots.pop_front();
        }
    }

    /// R5: the operation has failed. No operation begins any more, and none is tried again: which
    /// of the running operations reached the image is unknown.
    pub fn fail(&mut self, ticket: Ticket) {
        if deliberate!(FailedSyncRetried) {
            if let Some(slot) = self.slot(ticket) {
                slot.running = false;
            }
            return;
        }
        self.failed = true;
    }

    /// R5: a sync that has no entry in the list has failed.
    pub fn sync_failed(&mut self) {
        self.failed = true;
    }

    /// Whether an operation has failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// Whether no operation waits or runs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Number of operations in the lane. A finished one stays until all before it are finished.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// The last entry up to which all entries are performed.
    #[must_use]
    pub fn performed(&self) -> Seq {
        let open = self.slots.iter().filter(|slot| !slot.done).find_map(|slot| slot.seq);
        open.map_or(self.last, |seq| Seq(seq.0.saturating_sub(1)))
    }

    /// Whether an operation that waits or runs changes these bytes.
    #[must_use]
    pub fn touches(&self, extent: &Extent) -> bool {
        self.slots.iter().any(|slot| {
            !slot.done && matches!(&slot.reach, Reach::Changes(other) if other.overlaps(extent))
        })
    }
}
