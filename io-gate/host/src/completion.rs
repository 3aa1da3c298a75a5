//! What a backend hands back: the end of one request, for its slot to take on the device thread.

use io_gate::Outcome;
use io_gate::host::{EffectId, Origin, Performable};

/// A request that is over, or a queue that has more to do. Given to
/// [`VirtioSlot::complete`](crate::VirtioSlot::complete) of its slot on the device thread, because
/// guest memory changes on that thread only.
#[derive(Debug)]
pub struct Completion(pub(crate) Kind);

#[derive(Debug)]
pub(crate) enum Kind {
    /// A chain's request has been performed.
    Performed(Performed),
    /// A queue was left with chains to process, so that one guest cannot keep the thread busy.
    Again { slot: u16, queue: u16 },
}

/// A performed request and what came of it.
#[derive(Debug)]
pub(crate) struct Performed {
    pub(crate) request: Performable,
    pub(crate) outcome: Outcome,
    /// What an input brought; it is copied into guest memory by the slot.
    pub(crate) data: Vec<u8>,
}

impl Completion {
    pub(crate) fn again(slot: u16, queue: u16) -> Self {
        Self(Kind::Again { slot, queue })
    }

    /// The slot that it is for.
    #[must_use]
    pub fn slot(&self) -> u16 {
        match &self.0 {
            Kind::Performed(done) => done.request.record().origin.slot(),
            Kind::Again { slot, .. } => *slot,
        }
    }

    /// The name of the request, if one was performed.
    #[must_use]
    pub fn id(&self) -> Option<EffectId> {
        match &self.0 {
            Kind::Performed(done) => Some(done.request.record().id),
            Kind::Again { .. } => None,
        }
    }
}

impl Performed {
    /// The queue and the head of the chain that waits.
    pub(crate) fn chain(&self) -> Option<(u16, u16)> {
        match self.request.record().origin {
            Origin::Chain { queue, head, .. } => Some((queue, head)),
            Origin::Detached { .. } => None,
        }
    }
}

/// Whether the driver has to be interrupted, and for what (the two bits of the interrupt status
/// register, virtio 1.2, 4.2.2).
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

    /// Either one's reasons.
    pub fn or(self, other: Self) -> Self {
        Self { used: self.used || other.used, config: self.config || other.config }
    }
}
