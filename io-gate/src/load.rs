//! The weight of requests that are not settled, and its bound (P9).
//!
//! A guest can make requests faster than they are settled: the standby may be slow, the arbiter
//! unreachable, or a network peer not reading. Each request counts here until it is settled, held
//! or not, with the memory of its bookkeeping. A device whose slot is full must wait, which its
//! driver sees as a slow wire. A request of a device that does not wait is still accepted.
//!
//! There are two weights, memory and record bytes, since the bytes of a chain take memory on this
//! host but are not in the checkpoint's record. Each slot has a share that no other slot can take,
//! so that one stuck backend does not stop the others.

use alloc::collections::BTreeMap;
use core::ops::{AddAssign, SubAssign};

use crate::effect::{InputOp, OwnOp, Record, Request};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Upper estimate of the memory in bytes that a request takes besides its payload: its record, its
/// entries in the ledger, in a lane and in the completions, and the heap overhead of the copy and
/// the payload.
const ENTRY: usize = 512;
/// The longest encoding of a request in bytes, without its payload and ranges.
const ENCODED: usize = 64;
/// Size in bytes of a range of guest memory, in memory and encoded.
const RANGE: usize = 16;

/// Bytes of unsettled requests at which a device that can wait must wait.
struct Bound {
    /// For one slot.
    slot: usize,
    /// For all slots together.
    all: usize,
    /// Share of one slot that stays available while `all` is exceeded.
    least: usize,
}

const MEMORY: Bound = Bound { slot: 16 * MIB, all: 64 * MIB, least: MIB };
const RECORDED: Bound = Bound { slot: 2 * MIB, all: 6 * MIB, least: 64 * KIB };

/// Maximum number of slots that have a share of their own.
const MAX_SLOTS: usize = 32;
/// Maximum bytes that are requested between two checks of the bound: one disk request, or one
/// packet that a network card cuts into segments.
const SESSION_MEMORY: usize = 17 * MIB;
const SESSION_RECORDED: usize = 768 * KIB;
/// Number of register devices that may request as much at once: network cards.
const CARDS: usize = 2;

/// Maximum bytes that all requests in flight take in a checkpoint: the receiver's limit (P4).
pub const MAX_RECORDED: usize =
    RECORDED.all + MAX_SLOTS * (RECORDED.least + 17 * KIB) + (1 + CARDS) * SESSION_RECORDED;
/// Maximum memory in bytes that all requests in flight take on a host.
pub const MAX_MEMORY: usize = MEMORY.all + MAX_SLOTS * MEMORY.least + SESSION_MEMORY;

/// The weight of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    /// Bytes of this host's memory.
    pub memory: usize,
    /// Bytes of a checkpoint.
    pub recorded: usize,
}

impl Weight {
    /// The weight of one request.
    pub(crate) fn of(record: &Record) -> Self {
        let (bytes, ranges) = match &record.request {
            Request::Effect(op) | Request::Own(OwnOp { op, .. }) => match op.payload() {
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

    /// The weight of bytes that are in the record itself.
    pub(crate) fn carried(bytes: usize) -> Self {
        Self { memory: bytes, recorded: bytes }
    }

    /// The weight of bytes in guest memory that are copied on this host.
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
    /// One entry for each slot that has ever made a request.
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

    /// Whether the device of a slot must wait, if it can.
    pub(crate) fn is_full(&self, slot: u16) -> bool {
        let shares = self.slots.len() <= MAX_SLOTS;
        self.all.has(self.of(slot), |bound, own, all| {
            own >= bound.slot || (all >= bound.all && (own >= bound.least || !shares))
        })
    }

    /// Whether a slot that waits may continue. The threshold is below that of `is_full`, so that
    /// the slot is not woken for each request.
    pub(crate) fn has_room(&self, slot: u16) -> bool {
        !self.all.has(self.of(slot), |bound, own, all| {
            own > bound.slot / 2 || (all > bound.all / 4 * 3 && own > bound.least / 2)
        })
    }
}
