//! What requests that are not settled weigh, and the one bound on it (P9).
//!
//! A guest can ask for more than leaves: the standby is slow, the arbiter away, a peer does not read. Everything asked for
//! and not settled is weighed here, held or not, with what is kept for it besides its bytes. A device whose slot is
//! full has to wait, which is a slow wire to its driver; what is asked for all the same is taken.
//!
//! Two things are weighed, since a chain's bytes are kept by this host and do not travel: memory, and what a checkpoint's record
//! takes. Each slot has a share that no other can take from it, so that a backend which takes nothing stops no other.

use alloc::collections::BTreeMap;
use core::ops::{AddAssign, SubAssign};

use crate::effect::{InputOp, Record, Request};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// What is kept for a request besides its bytes, generously: its record, its places in the ledger, in a lane and among the completions,
/// its copy's and its bytes' places in the heap.
const ENTRY: usize = 512;
/// The longest encoding of a request without its bytes and ranges.
const ENCODED: usize = 64;
/// A range of guest memory, kept or encoded.
const RANGE: usize = 16;

/// How much may be asked for and not settled, before whoever can wait has to.
struct Bound {
    /// By one slot.
    slot: usize,
    /// By all together.
    all: usize,
    /// By one slot even if all together have too much.
    least: usize,
}

const MEMORY: Bound = Bound { slot: 16 * MIB, all: 64 * MIB, least: MIB };
const RECORDED: Bound = Bound { slot: 2 * MIB, all: 6 * MIB, least: 64 * KIB };

/// The most slots that have a share of their own.
const MAX_SLOTS: usize = 32;
/// The most that is asked for between two looks at the bound: a disk's request, a packet that a card cuts into segments.
const SESSION_MEMORY: usize = 17 * MIB;
const SESSION_RECORDED: usize = 768 * KIB;
/// Register devices that ask for that much in one piece: network cards.
const CARDS: usize = 2;

/// The most that all requests in flight take in a checkpoint, for whoever limits what he accepts (P4).
pub const MAX_RECORDED: usize =
    RECORDED.all + MAX_SLOTS * (RECORDED.least + 17 * KIB) + (1 + CARDS) * SESSION_RECORDED;
/// The most memory that all requests in flight take: what a host has to have for it.
pub const MAX_MEMORY: usize = MEMORY.all + MAX_SLOTS * MEMORY.least + SESSION_MEMORY;

/// What requests weigh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    /// Bytes of this host's memory.
    pub memory: usize,
    /// Bytes of a checkpoint.
    pub recorded: usize,
}

impl Weight {
    /// Of one request.
    pub(crate) fn of(record: &Record) -> Self {
        let (bytes, ranges) = match &record.request {
            Request::Effect(op) => match op.payload() {
                Some(payload) => match payload.guest_ranges() {
                    Some(ranges) => (Self::kept(payload.len()), ranges.len()),
                    None => (Self::carried(payload.len()), 0),
                },
                None => (Self::default(), 0),
            },
            Request::Input(InputOp::BlockRead { into, .. } | InputOp::Entropy { into }) => {
                (Self::kept(into.len()), into.guest_ranges().len())
            }
        };
        let mut weight =
            Self { memory: ENTRY + ranges * RANGE, recorded: ENCODED + ranges * RANGE };
        weight += bytes;
        weight
    }

    /// Of bytes that are in the record itself.
    pub(crate) fn carried(bytes: usize) -> Self {
        Self { memory: bytes, recorded: bytes }
    }

    /// Of bytes that are guest memory, and copied out of it.
    fn kept(bytes: usize) -> Self {
        Self { memory: bytes, recorded: 0 }
    }

    fn has(self, own: Self, over: impl Fn(&Bound, usize, usize) -> bool) -> bool {
        over(&MEMORY, own.memory, self.memory) || over(&RECORDED, own.recorded, self.recorded)
    }
}

impl AddAssign for Weight {
    fn add_assign(&mut self, other: Self) {
        self.memory += other.memory;
        self.recorded += other.recorded;
    }
}

impl SubAssign for Weight {
    fn sub_assign(&mut self, other: Self) {
        self.memory -= other.memory;
        self.recorded -= other.recorded;
    }
}

/// The weight of all requests that are not settled.
#[derive(Debug, Default)]
pub(crate) struct Load {
    all: Weight,
    /// One entry for each slot that has ever asked for something.
    slots: BTreeMap<u16, Weight>,
}

impl Load {
    pub(crate) fn add(&mut self, slot: u16, weight: Weight) {
        self.all += weight;
        *self.slots.entry(slot).or_default() += weight;
    }

    pub(crate) fn remove(&mut self, slot: u16, weight: Weight) {
        self.all -= weight;
        *self.slots.entry(slot).or_default() -= weight;
    }

    pub(crate) fn all(&self) -> Weight {
        self.all
    }

    pub(crate) fn of(&self, slot: u16) -> Weight {
        self.slots.get(&slot).copied().unwrap_or_default()
    }

    /// Whether a slot has to wait, if it can.
    pub(crate) fn is_full(&self, slot: u16) -> bool {
        let shares = self.slots.len() <= MAX_SLOTS;
        self.all.has(self.of(slot), |bound, own, all| {
            own >= bound.slot || (all >= bound.all && (own >= bound.least || !shares))
        })
    }

    /// Whether a slot that waits goes on: not at once when it is no longer full, or it would be woken for each request.
    pub(crate) fn has_room(&self, slot: u16) -> bool {
        !self.all.has(self.of(slot), |bound, own, all| {
            own > bound.slot / 2 || (all > bound.all / 4 * 3 && own > bound.least / 2)
        })
    }
}
