//! Events into the standby's state machine, and actions out of it.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;

use io_gate::host::{Epoch, Term};

use super::{CheckedPages, Checkpoint};
use crate::LinkId;
use crate::disks::Standing;
use crate::handshake::Hello;
use crate::wire::{Data, Frame, Hashes, Outgoing, Verified, WireError};

/// An event for the state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A primary has connected.
    Connected {
        /// The name of the connection.
        link: LinkId,
    },
    /// A frame was received.
    Frame {
        /// The link it came over.
        link: LinkId,
        /// The frame.
        frame: Frame,
    },
    /// Bytes were received, perhaps not yet a whole frame: a frame takes long over a slow link.
    Progress {
        /// The link they came over.
        link: LinkId,
    },
    /// The received bytes are not a frame. Nothing more can be read from the link.
    Garbled {
        /// The link they came over.
        link: LinkId,
        /// What is wrong.
        error: WireError,
    },
    /// The connection is closed or broken, or a frame could not be sent.
    LinkLost {
        /// The link.
        link: LinkId,
        /// Why.
        reason: String,
    },
    /// This side's machine is described. The state machine fills in protocol, term, session and
    /// options.
    Described {
        /// The description.
        ours: Box<Hello>,
    },
    /// This side cannot have a machine like the primary's.
    CannotHost {
        /// Why, with the values of both sides and advice.
        reason: String,
    },
    /// The checkpoint decodes, and can be applied.
    Applicable {
        /// The epoch of the checkpoint.
        epoch: Epoch,
    },
    /// The checkpoint does not decode, or cannot be applied.
    NotApplicable {
        /// The epoch of the checkpoint.
        epoch: Epoch,
        /// Why.
        reason: String,
    },
    /// The machine was hashed after a checkpoint with hashes was applied.
    Hashed {
        /// The epoch of the checkpoint.
        epoch: Epoch,
        /// The hashes.
        hashes: Hashes,
    },
    /// The machine could not be hashed after a checkpoint with hashes was applied.
    CannotHash {
        /// The epoch of the checkpoint.
        epoch: Epoch,
        /// Why.
        reason: String,
    },
    /// This side could not continue from the checkpoint that it holds. The driver found this before
    /// it asked the arbiter, and gives it instead of the arbiter's answer, or in reply to the
    /// operator's takeover.
    CannotGoOn {
        /// Why.
        reason: String,
    },
    /// This side cannot get now what it needs to continue. The driver found this before it asked
    /// the arbiter, and gives it instead of the arbiter's answer. It is tried again.
    NotReady {
        /// What is missing, and what to do.
        reason: String,
    },
    /// Time has passed.
    Tick,
    /// The arbiter has granted the claim.
    ArbiterGranted {
        /// The claimed term.
        term: Term,
    },
    /// Another machine holds the claimed term.
    ArbiterDenied {
        /// The claimed term.
        term: Term,
        /// The holder of the term.
        holder: String,
    },
    /// The arbiter did not answer.
    ArbiterUnreachable {
        /// Why.
        reason: String,
    },
    /// The driver has checked what this side needs to continue a guest.
    Resources {
        /// What is missing; `None` if nothing is.
        lack: Option<Lack>,
    },
    /// The operator wants this side to continue the guest.
    OperatorTakeOver,
    /// The operator gives up the checkpoint: the primary continues.
    OperatorDiscard,
    /// The operator ends this standby.
    OperatorStop,
    /// What this side may do with its own disks has changed. Never given to a machine without them.
    Disks(Standing),
}

impl Event {
    /// The name for messages.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Connected { .. } => "connected",
            Self::Frame { .. } => "frame",
            Self::Progress { .. } => "progress",
            Self::Garbled { .. } => "garbled frame",
            Self::LinkLost { .. } => "link lost",
            Self::Described { .. } => "described",
            Self::CannotHost { .. } => "cannot host",
            Self::Applicable { .. } => "applicable",
            Self::NotApplicable { .. } => "not applicable",
            Self::Hashed { .. } => "hashed",
            Self::CannotHash { .. } => "cannot hash",
            Self::CannotGoOn { .. } => "cannot go on",
            Self::NotReady { .. } => "not ready",
            Self::Tick => "tick",
            Self::ArbiterGranted { .. } => "arbiter: granted",
            Self::ArbiterDenied { .. } => "arbiter: denied",
            Self::ArbiterUnreachable { .. } => "arbiter: unreachable",
            Self::Resources { .. } => "resources",
            Self::OperatorTakeOver => "operator: take over",
            Self::OperatorDiscard => "operator: discard",
            Self::OperatorStop => "operator: stop",
            Self::Disks(_) => "disks",
        }
    }
}

/// A resource that this side needs to continue a guest and does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// What is missing, and what to do.
    pub reason: String,
    /// Whether the guest cannot run here without it. If so, this side does not ask for the right on
    /// mere suspicion: it would take the right from a primary that may be alive and well (P7).
    pub blocks: bool,
}

/// An action for the driver.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Make or find a machine like the primary's; answer [`Event::Described`] or
    /// [`Event::CannotHost`].
    Describe {
        /// The primary's description of itself.
        hello: Box<Hello>,
    },
    /// Send a frame.
    Send {
        /// The link.
        link: LinkId,
        /// The frame.
        frame: Outgoing,
    },
    /// Close the link after all queued frames are sent. Also given for a lost link.
    CloseLink {
        /// The link.
        link: LinkId,
        /// Why.
        reason: String,
    },
    /// Write pages to memory now: there is no checkpoint yet that they could damage.
    ApplyBulk(CheckedPages),
    /// Store these bytes: the next ones of [the images that this side
    /// lacks](crate::handshake::images_to_send). The first [`Check`](Self::Check) includes whether
    /// they are the announced ones.
    StoreImages(Data),
    /// Decode a checkpoint's state and check whether it can be applied, without changing anything.
    /// Answer with [`Event::Applicable`] or [`Event::NotApplicable`].
    Check(Arc<Checkpoint>),
    /// Apply the checkpoint: from now on it is the one to take over from. If it has hashes, hash
    /// the machine afterwards and answer with [`Event::Hashed`].
    Apply(Arc<Checkpoint>),
    /// Claim a term. Answer with one of the `Arbiter` events.
    AskArbiter {
        /// The term.
        term: Term,
        /// The reason.
        why: String,
    },
    /// Continue the guest from the last applied checkpoint. This is the last action: the machine
    /// continues as a [`Primary`](crate::primary::Primary).
    TakeOver {
        /// The right to continue.
        taken: TakenOver,
        /// What led to it.
        reason: String,
    },
    /// Drop everything held: it must never be used.
    Discard {
        /// Why.
        reason: String,
    },
    /// End this standby. This is the last action.
    Stop {
        /// Why.
        reason: String,
    },
    /// Report an event for the operator.
    Report(Report),
}

/// The right to continue from a checkpoint in a term that was won. Only the standby's state machine
/// makes it, and [`Primary::after_takeover`](crate::primary::Primary::after_takeover) spends it
/// (P2).
#[derive(Debug, PartialEq, Eq)]
pub struct TakenOver {
    term: Term,
    epoch: Epoch,
}

impl TakenOver {
    pub(crate) fn new(term: Term, epoch: Epoch) -> Self {
        Self { term, epoch }
    }

    /// The term that was won.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    /// The checkpoint to continue from.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
}

/// An event for the operator. Its text is one line of a log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Report {
    /// A primary was accepted.
    #[error("a primary of release {release} has connected in term {term}; receiving guest memory")]
    Filling {
        /// The primary's term.
        term: Term,
        /// The primary's release.
        release: String,
    },
    /// There is a first checkpoint.
    #[error("ready: holds epoch {epoch}")]
    Ready {
        /// Its epoch.
        epoch: Epoch,
    },
    /// The primary is unreachable.
    #[error("lost the primary: {reason}")]
    LinkLost {
        /// Why.
        reason: String,
    },
    /// The arbiter did not answer. It is asked again.
    #[error("the arbiter is unreachable: {reason}")]
    ArbiterUnreachable {
        /// Why.
        reason: String,
    },
    /// The checkpoint was given up, and the primary was told: it continues without asking the
    /// arbiter.
    #[error("discarded its checkpoint: {reason}")]
    GaveUp {
        /// Why.
        reason: String,
    },
    /// This side could not continue the guest.
    #[error("could not continue the guest: {reason}")]
    Degraded {
        /// What is missing.
        reason: String,
    },
    /// Nothing is missing any more.
    #[error("can continue the guest again: nothing is missing any more")]
    Whole,
    /// The primary is unreachable, and this side does not ask for the right to continue.
    #[error("will not take over before this is fixed: {reason}")]
    WillNotTakeOver {
        /// What is missing.
        reason: String,
    },
    /// Nothing happens until the operator decides.
    #[error(
        "waits for an operator's decision, as there is no arbiter (`take-over` here or `run-alone` on the primary, \
         never both): {reason}"
    )]
    WaitingForOperator {
        /// What led to the doubt.
        reason: String,
    },
    /// Hashes were compared.
    #[error(
        "epoch {epoch}: hashes {}: primary {}, standby {}",
        if verified.agree { "agree" } else { "DIFFER" }, verified.primary, verified.standby
    )]
    Verified {
        /// The epoch.
        epoch: Epoch,
        /// The outcome.
        verified: Verified,
    },
}
