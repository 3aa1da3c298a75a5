//! Events into the primary's state machine, and actions out of it.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use io_gate::host::{Alone, Committed, Epoch, Term};

use crate::LinkId;
use crate::disks;
use crate::handshake::{Hello, ImageId, SessionOptions};
use crate::wire::{Frame, Outgoing, Verified, WireError};

/// An event for the state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A connection to a standby exists.
    StandbyConnected {
        /// The name of the connection.
        link: LinkId,
        /// This side's description of itself. The state machine fills in protocol and term.
        hello: Box<Hello>,
    },
    /// The requested connection could not be made.
    ConnectFailed {
        /// Why.
        reason: String,
    },
    /// A frame was received.
    Frame {
        /// The link it came over.
        link: LinkId,
        /// The frame.
        frame: Frame,
    },
    /// The received bytes are not a frame. Nothing more can be read from the link.
    Garbled {
        /// The link they came over.
        link: LinkId,
        /// What is wrong.
        error: WireError,
    },
    /// The standby does not fit by the driver's own checks outside the handshake, or these checks
    /// failed.
    Unfit {
        /// The link to the standby.
        link: LinkId,
        /// What was found, and what to change.
        reason: String,
    },
    /// The connection is closed or broken, or a frame could not be sent.
    LinkLost {
        /// The link.
        link: LinkId,
        /// Why.
        reason: String,
    },
    /// Bytes were received, perhaps not yet a whole frame: a frame takes long over a slow link.
    Progress {
        /// The link they came over.
        link: LinkId,
    },
    /// So few pages are dirty that the guest can be paused while the rest is sent.
    PrecopyDone {
        /// The link over which memory was sent.
        link: LinkId,
    },
    /// An epoch was sealed. Given before the first of its frames is sent: from now on a standby may
    /// come to hold a checkpoint (P2).
    Sealed {
        /// The link to send it over. If that link is gone, the event is refused and the epoch must
        /// not be sent.
        link: LinkId,
        /// The epoch.
        epoch: Epoch,
    },
    /// The machine makes no progress: a thread that the guest's output needs is stuck.
    Stalled {
        /// What is stuck, and for how long.
        reason: String,
    },
    /// The machine makes progress again.
    Recovered,
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
    /// The operator wants the machine to look for a standby now.
    OperatorProtect,
    /// The operator wants no standby; or, without an arbiter, decides that this machine continues.
    OperatorRunAlone,
    /// The operator ends the machine.
    OperatorStop,
    /// The guest has ended the machine.
    GuestPoweredOff,
    /// The check before an effect has found that this machine may not perform any more.
    Fenced {
        /// The reason.
        reason: String,
    },
    /// Something has happened to the own disks. Never given to a machine without them.
    Disks(disks::Event),
}

impl Event {
    /// The name for messages.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::StandbyConnected { .. } => "standby connected",
            Self::ConnectFailed { .. } => "connect failed",
            Self::Frame { .. } => "frame",
            Self::Garbled { .. } => "garbled frame",
            Self::Unfit { .. } => "standby unfit",
            Self::LinkLost { .. } => "link lost",
            Self::Progress { .. } => "progress",
            Self::PrecopyDone { .. } => "pre-copy done",
            Self::Sealed { .. } => "sealed",
            Self::Stalled { .. } => "stalled",
            Self::Recovered => "recovered",
            Self::Tick => "tick",
            Self::ArbiterGranted { .. } => "arbiter: granted",
            Self::ArbiterDenied { .. } => "arbiter: denied",
            Self::ArbiterUnreachable { .. } => "arbiter: unreachable",
            Self::OperatorProtect => "operator: protect",
            Self::OperatorRunAlone => "operator: run alone",
            Self::OperatorStop => "operator: stop",
            Self::GuestPoweredOff => "guest powered off",
            Self::Fenced { .. } => "fenced",
            Self::Disks(_) => "disks",
        }
    }
}

/// An action for the driver.
#[derive(Debug)]
pub enum Action {
    /// Try to reach a standby. Answer with [`Event::StandbyConnected`] or [`Event::ConnectFailed`].
    Connect,
    /// Send a frame.
    Send {
        /// The link.
        link: LinkId,
        /// The frame.
        frame: Outgoing,
    },
    /// Close the link after all queued frames are sent, and drop everything that belongs to its
    /// session: dirty tracking, staging buffers, epochs in flight. Also given for a lost link.
    CloseLink {
        /// The link.
        link: LinkId,
        /// Why.
        reason: String,
    },
    /// Send the images that the standby lacks, then memory while the guest runs. Answer with
    /// [`Event::PrecopyDone`].
    StartPrecopy {
        /// The link.
        link: LinkId,
        /// The options of the session.
        options: SessionOptions,
        /// The standby's number for the session, for
        /// [`EpochDigest::new`](crate::wire::EpochDigest::new).
        session: u64,
        /// The images that the standby lacks.
        images: Vec<ImageId>,
    },
    /// Take the first checkpoint of the session. Answer with [`Event::Sealed`], then send it.
    SealFirst {
        /// The link.
        link: LinkId,
    },
    /// Make the gate hold.
    Hold,
    /// Release the effects that the proof covers.
    Release {
        /// The proof for the gate.
        proof: Committed,
        /// Time from the seal to the acknowledgement.
        latency: Duration,
    },
    /// Open the gate.
    RunAlone(Alone),
    /// Claim a term. Answer with one of the `Arbiter` events.
    AskArbiter {
        /// The term.
        term: Term,
        /// The reason.
        why: String,
    },
    /// End the machine. This is the last action. If fenced, nothing more may be performed, not even
    /// released effects.
    Stop {
        /// Why.
        reason: String,
        /// Whether another machine has, or may have, taken this one's place.
        fenced: bool,
    },
    /// Report an event for the operator.
    Report(Report),
}

/// An event for the operator. Its text is one line of a log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Report {
    /// No standby was reached.
    #[error("no standby: {reason}")]
    NoStandby {
        /// Why.
        reason: String,
    },
    /// A standby has accepted this machine.
    #[error("connected to a standby of release {release}; sending guest memory")]
    Joined {
        /// The standby's release.
        release: String,
    },
    /// The machine is protected.
    #[error("protected: the standby holds epoch {epoch}")]
    Protected {
        /// The epoch of the standby's first checkpoint.
        epoch: Epoch,
    },
    /// A standby holds a checkpoint, but could not continue the guest.
    #[error("not protected: the standby could not continue the guest: {reason}")]
    Degraded {
        /// What the standby lacks.
        reason: String,
    },
    /// The machine no longer has a standby.
    #[error("unprotected: {reason}")]
    LinkLost {
        /// Why.
        reason: String,
    },
    /// The machine makes no progress: its standby, if any, should continue the guest.
    #[error("stalled: {reason}")]
    Stalled {
        /// What is stuck.
        reason: String,
    },
    /// The machine makes progress again.
    #[error("no longer stalled")]
    Recovered,
    /// The arbiter did not answer. Output is held, and the arbiter is asked again.
    #[error("the arbiter is unreachable, output is held: {reason}")]
    ArbiterUnreachable {
        /// Why.
        reason: String,
    },
    /// Output is held until the operator decides.
    #[error(
        "output is held until an operator decides, as there is no arbiter (`run-alone` here or `take-over` on the \
         standby, never both): {reason}"
    )]
    WaitingForOperator {
        /// What led to the doubt.
        reason: String,
    },
    /// The right to run alone was won.
    #[error("runs alone in term {term}: {reason}")]
    RunsAlone {
        /// The term that was won.
        term: Term,
        /// What led to the question.
        reason: String,
    },
    /// The standby has compared hashes.
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
