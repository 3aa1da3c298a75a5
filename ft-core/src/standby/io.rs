//! What goes into the standby's state machine, and what comes out.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;

use io_gate::host::{Epoch, Term};

use super::{CheckedPages, Checkpoint};
use crate::LinkId;
use crate::handshake::Hello;
use crate::wire::{Data, Frame, Hashes, Outgoing, Verified, WireError};

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody has connected.
    Connected {
        /// The connection's name.
        link: LinkId,
    },
    /// A frame came.
    Frame {
        /// From where.
        link: LinkId,
        /// The frame.
        frame: Frame,
    },
    /// Bytes came, perhaps not yet a whole frame: over a slow link one takes its time.
    Progress {
        /// From where.
        link: LinkId,
    },
    /// Something came that is no frame; nothing more can be read from the link.
    Garbled {
        /// From where.
        link: LinkId,
        /// What is wrong with it.
        error: WireError,
    },
    /// The connection is closed or broken, or a frame could not be sent.
    LinkLost {
        /// Which.
        link: LinkId,
        /// Why.
        reason: String,
    },
    /// This side's machine is as described; protocol, term, session and options are filled in.
    Described {
        /// The description.
        ours: Box<Hello>,
    },
    /// This side cannot have a machine as the primary's.
    CannotHost {
        /// Why, with both sides' values and what to change.
        reason: String,
    },
    /// The checkpoint decodes, and can be applied.
    Applicable {
        /// Which.
        epoch: Epoch,
    },
    /// The checkpoint does not decode, or cannot be applied.
    NotApplicable {
        /// Which.
        epoch: Epoch,
        /// Why.
        reason: String,
    },
    /// The machine was hashed, after a checkpoint with hashes was applied.
    Hashed {
        /// Which checkpoint.
        epoch: Epoch,
        /// The hashes.
        hashes: Hashes,
    },
    /// The machine could not be hashed, after a checkpoint with hashes was applied.
    CannotHash {
        /// Which checkpoint.
        epoch: Epoch,
        /// Why.
        reason: String,
    },
    /// This side could not go on from the checkpoint that it holds: found before the arbiter was asked, and given in place of
    /// its answer; or of the operator's wish for a takeover.
    CannotGoOn {
        /// Why.
        reason: String,
    },
    /// What this side needs to go on cannot be had now: found before the arbiter was asked, and given in place of its answer. It
    /// is tried again.
    NotReady {
        /// What, and what to do about it.
        reason: String,
    },
    /// Time has passed.
    Tick,
    /// The arbiter has granted what was asked for.
    ArbiterGranted {
        /// The term asked for.
        term: Term,
    },
    /// Somebody else holds what was asked for.
    ArbiterDenied {
        /// The term asked for.
        term: Term,
        /// Who holds it.
        holder: String,
    },
    /// The arbiter did not answer.
    ArbiterUnreachable {
        /// Why.
        reason: String,
    },
    /// What this side needs to go on with a guest was looked at, and this is missing; or nothing.
    Resources {
        /// What is missing.
        lack: Option<Lack>,
    },
    /// The operator wants this side to go on with the guest.
    OperatorTakeOver,
    /// The operator gives the checkpoint up: the primary goes on.
    OperatorDiscard,
    /// The operator ends this standby.
    OperatorStop,
}

impl Event {
    /// Its name, for messages.
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
        }
    }
}

/// Something that this side needs to go on with a guest, and does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// What, and what to do about it.
    pub reason: String,
    /// Whether the guest could not run here without it. Then this side does not ask for the right to on mere suspicion: it
    /// would take it from a primary that may be alive and well (P7).
    pub blocks: bool,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Make or find a machine like the primary's; answer [`Event::Described`] or
    /// [`Event::CannotHost`].
    Describe {
        /// What the primary says of itself.
        hello: Box<Hello>,
    },
    /// Send a frame.
    Send {
        /// Where to.
        link: LinkId,
        /// What.
        frame: Outgoing,
    },
    /// Close the link, after what was to be sent has been. Also given for a link that was lost.
    CloseLink {
        /// Which.
        link: LinkId,
        /// Why.
        reason: String,
    },
    /// Write pages to memory now: there is no checkpoint yet that they could spoil.
    ApplyBulk(CheckedPages),
    /// Keep these bytes: the next ones of [the images that this side said it lacks](crate::handshake::images_to_send). Whether
    /// they are what was announced is part of the first [`Check`](Self::Check).
    StoreImages(Data),
    /// Decode a checkpoint's state and see whether it can be applied, changing nothing; answer
    /// [`Event::Applicable`] or [`Event::NotApplicable`].
    Check(Arc<Checkpoint>),
    /// Apply the checkpoint: from now on it is the one to take over from. Where it has hashes,
    /// hash the machine afterwards and answer [`Event::Hashed`].
    Apply(Arc<Checkpoint>),
    /// Claim a term; answer one of the `Arbiter` events.
    AskArbiter {
        /// The term.
        term: Term,
        /// What for.
        why: String,
    },
    /// Go on with the guest from the last applied checkpoint. The last action: the machine goes on
    /// as a [`Primary`](crate::primary::Primary).
    TakeOver {
        /// The right to.
        taken: TakenOver,
        /// What led to it.
        reason: String,
    },
    /// Drop all that is held: it must never be used.
    Discard {
        /// Why.
        reason: String,
    },
    /// End this standby; the last action.
    Stop {
        /// Why.
        reason: String,
    },
    /// Something that people want to know.
    Report(Report),
}

/// The right to go on from a checkpoint, in a term that was won: made by the standby's state machine
/// only, spent on [`Primary::after_takeover`](crate::primary::Primary::after_takeover) (P2).
#[derive(Debug, PartialEq, Eq)]
pub struct TakenOver {
    term: Term,
    epoch: Epoch,
}

impl TakenOver {
    pub(super) fn new(term: Term, epoch: Epoch) -> Self {
        Self { term, epoch }
    }

    /// The term won.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    /// The checkpoint to go on from.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
}

/// Something that people want to know. Its text is one line of a log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Report {
    /// A primary was accepted.
    #[error("a primary of release {release} has joined in term {term}; receiving memory")]
    Filling {
        /// Its term.
        term: Term,
        /// Its release.
        release: String,
    },
    /// There is a checkpoint.
    #[error("ready: holds epoch {epoch}")]
    Ready {
        /// The first.
        epoch: Epoch,
    },
    /// The primary is out of reach.
    #[error("lost the primary: {reason}")]
    LinkLost {
        /// Why.
        reason: String,
    },
    /// The arbiter did not answer; it is asked again.
    #[error("the arbiter cannot be asked: {reason}")]
    ArbiterUnreachable {
        /// Why.
        reason: String,
    },
    /// The checkpoint was given up, and the primary told so: it goes on without asking anybody.
    #[error("gave its checkpoint up: {reason}")]
    GaveUp {
        /// Why.
        reason: String,
    },
    /// This side could not go on with the guest.
    #[error("could not go on with the guest: {reason}")]
    Degraded {
        /// What is missing.
        reason: String,
    },
    /// What was missing is there.
    #[error("could go on with the guest: nothing is missing any more")]
    Whole,
    /// The primary is out of reach, and this side does not ask for the right to go on.
    #[error("will not take over before this is put right: {reason}")]
    WillNotTakeOver {
        /// What is missing.
        reason: String,
    },
    /// Nothing happens until the operator decides.
    #[error(
        "nothing happens until an operator decides, as there is no arbiter (`take-over` here, or \
         `run-alone` on the primary, never both): {reason}"
    )]
    WaitingForOperator {
        /// What made it doubt.
        reason: String,
    },
    /// Hashes were compared.
    #[error(
        "epoch {epoch}: hashes {}: primary {}, standby {}",
        if verified.agree { "agree" } else { "DIFFER" }, verified.primary, verified.standby
    )]
    Verified {
        /// Of which epoch.
        epoch: Epoch,
        /// The outcome.
        verified: Verified,
    },
}
