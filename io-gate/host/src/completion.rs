//! Completions: what a slot has to handle on the device thread after a request has ended.

use io_gate::Outcome;
use io_gate::host::{EffectId, Origin, Performable};

/// A request that is over, or a queue that must be processed again. The device thread gives it to
/// [`VirtioSlot::complete`](crate::VirtioSlot::complete) of its slot, which writes the outcome into
/// guest memory.
#[derive(Debug)]
pub struct Completion(pub(crate) Kind);

#[derive(Debug)]
pub(crate) enum Kind {
    /// A chain's request has been performed.
    Performed(Performed),
    /// Process this queue again. It may still have chains: it has yielded, so that one guest cannot
    /// keep the thread busy, or it has waited until its slot had room.
    Again { slot: u16, queue: u16 },
}

/// A performed request and its outcome.
#[derive(Debug)]
pub(crate) struct Performed {
    pub(crate) request: Performable,
    pub(crate) outcome: Outcome,
    /// The data of an input. The slot copies it into guest memory.
    pub(crate) data: Vec<u8>,
}

impl Completion {
    pub(crate) fn again(slot: u16, queue: u16) -> Self {
        Self(Kind::Again { slot, queue })
    }

    /// The slot of the completion.
    #[must_use]
    pub fn slot(&self) -> u16 {
        match &self.0 {
            Kind::Performed(done) => done.request.record().origin.slot(),
            Kind::Again { slot, .. } => *slot,
        }
    }

    /// The id of the request, if one was performed.
    #[must_use]
    pub fn id(&self) -> Option<EffectId> {
        match &self.0 {
            Kind::Performed(done) => Some(done.request.record().id),
            Kind::Again { .. } => None,
        }
    }
}

impl Performed {
    /// The queue and the head of the waiting chain.
    pub(crate) fn chain(&self) -> Option<(u16, u16)> {
        match self.request.record().origin {
            Origin::Chain { queue, head, .. } => Some((queue, head)),
            Origin::Detached { .. } => None,
        }
    }
}

/// Whether the driver must be interrupted, and why (the two bits of the interrupt status register,
/// virtio 1.2, 4.2.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "the transport has to raise the interrupt"]
pub struct Interrupt {
    /// A used buffer.
    pub used: bool,
    /// A change of the configuration space.
    pub config: bool,
}

impl Interrupt {
    /// Nothing to raise.
    pub const NONE: Self = Self { used: false, config: false };

    /// Whether there is anything to raise.
    #[must_use]
    pub fn any(self) -> bool {
        self.used || self.config
    }

    /// Combines two interrupts.
    pub fn or(self, other: Self) -> Self {
        Self { used: self.used || other.used, config: self.config || other.config }
    }
}
