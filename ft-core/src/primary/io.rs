//! What goes into the primary's state machine, and what comes out.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use io_gate::host::{Alone, Committed, Epoch, Term};

use crate::LinkId;
use crate::handshake::{Hello, ImageId, SessionOptions};
use crate::wire::{Frame, Outgoing, Verified, WireError};

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// There is a connection with a standby.
    StandbyConnected {
        /// Its name.
        link: LinkId,
        /// What this side says of itself; protocol and term are filled in by the machine.
        hello: Box<Hello>,
    },
    /// The connection that was asked for could not be made.
    ConnectFailed {
        /// Why.
        reason: String,
    },
    /// A frame came.
    Frame {
        /// From where.
        link: LinkId,
        /// The frame.
        frame: Frame,
    },
    /// Something came that is no frame; nothing more can be read from the link.
    Garbled {
        /// From where.
        link: LinkId,
        /// What is wrong with it.
        error: WireError,
    },
    /// The standby does not fit, by what the driver has found outside of the handshake, or it could not be found out.
    Unfit {
        /// Over which link it was reached.
        link: LinkId,
        /// What was found, and what to change.
        reason: String,
    },
    /// The connection is closed or broken, or a frame could not be sent.
    LinkLost {
        /// Which.
        link: LinkId,
        /// Why.
        reason: String,
    },
    /// Bytes came, perhaps not yet a whole frame: over a slow link one takes its time.
    Progress {
        /// From where.
        link: LinkId,
    },
    /// So little is dirty that the guest can be paused to send the rest.
    PrecopyDone {
        /// The link that memory was sent over.
        link: LinkId,
    },
    /// An epoch was sealed. Given before the first of its frames is sent: from now on a standby may
    /// come to hold a checkpoint (P2).
    Sealed {
        /// The link that it is to be sent over. Where that is gone it must not be sent: the event is
        /// refused.
        link: LinkId,
        /// Which.
        epoch: Epoch,
    },
    /// The machine makes no progress: a thread that the guest's output needs is stuck.
    Stalled {
        /// What is stuck, and for how long.
        reason: String,
    },
    /// It makes progress again.
    Recovered,
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
    /// The operator wants a standby to be looked for, now.
    OperatorProtect,
    /// The operator wants no standby; or, where there is no arbiter, decides that this machine
    /// goes on.
    OperatorRunAlone,
    /// The operator ends the machine.
    OperatorStop,
    /// The guest has ended the machine.
    GuestPoweredOff,
    /// The check before an effect has found that this machine may perform nothing.
    Fenced {
        /// What it found.
        reason: String,
    },
}

impl Event {
    /// Its name, for messages.
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
        }
    }
}

/// What to do.
#[derive(Debug)]
pub enum Action {
    /// Try to reach a standby; answer [`Event::StandbyConnected`] or [`Event::ConnectFailed`].
    Connect,
    /// Send a frame.
    Send {
        /// Where to.
        link: LinkId,
        /// What.
        frame: Outgoing,
    },
    /// Close the link, after what was to be sent has been, and drop all that belongs to its
    /// session: dirty tracking, staging buffers, epochs in flight. Also given for a link that was
    /// lost.
    CloseLink {
        /// Which.
        link: LinkId,
        /// Why.
        reason: String,
    },
    /// Send the images that the standby lacks, then memory while the guest runs; answer [`Event::PrecopyDone`].
    StartPrecopy {
        /// Where to.
        link: LinkId,
        /// How the session is run.
        options: SessionOptions,
        /// The standby's number for it, for [`EpochDigest::new`](crate::wire::EpochDigest::new).
        session: u64,
        /// What the standby lacks.
        images: Vec<ImageId>,
    },
    /// Take the first checkpoint of the session; answer [`Event::Sealed`], then send it.
    SealFirst {
        /// Where to.
        link: LinkId,
    },
    /// Make the gate hold.
    Hold,
    /// Let out what the proof covers.
    Release {
        /// For the gate.
        proof: Committed,
        /// From the seal to the acknowledgement.
        latency: Duration,
    },
    /// Open the gate.
    RunAlone(Alone),
    /// Claim a term; answer one of the `Arbiter` events.
    AskArbiter {
        /// The term.
        term: Term,
        /// What for.
        why: String,
    },
    /// End the machine; the last action. Fenced: nothing more may be performed, not even what was
    /// released before.
    Stop {
        /// Why.
        reason: String,
        /// Whether another machine has, or may have, taken this one's place.
        fenced: bool,
    },
    /// Something that people want to know.
    Report(Report),
}

/// Something that people want to know. Its text is one line of a log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Report {
    /// No standby was reached.
    #[error("no standby: {reason}")]
    NoStandby {
        /// Why.
        reason: String,
    },
    /// A standby has accepted this machine.
    #[error("joined a standby of release {release}; sending memory")]
    Joined {
        /// Its release.
        release: String,
    },
    /// The machine is protected.
    #[error("protected: the standby holds epoch {epoch}")]
    Protected {
        /// The standby's first checkpoint.
        epoch: Epoch,
    },
    /// A standby holds the machine, and could not go on with it.
    #[error("not protected: the standby could not go on with the guest: {reason}")]
    Degraded {
        /// What it lacks.
        reason: String,
    },
    /// The machine has no standby any more.
    #[error("unprotected: {reason}")]
    LinkLost {
        /// Why.
        reason: String,
    },
    /// The machine makes no progress: its standby, if it has one, is to go on with the guest.
    #[error("stalled: {reason}")]
    Stalled {
        /// What is stuck.
        reason: String,
    },
    /// It makes progress again.
    #[error("no longer stalled")]
    Recovered,
    /// The arbiter did not answer; output is held, and it is asked again.
    #[error("the arbiter cannot be asked, output is held: {reason}")]
    ArbiterUnreachable {
        /// Why.
        reason: String,
    },
    /// Output is held until the operator decides.
    #[error(
        "output is held until an operator decides, as there is no arbiter (`run-alone` here, or \
         `take-over` on the standby, never both): {reason}"
    )]
    WaitingForOperator {
        /// What made it doubt.
        reason: String,
    },
    /// The right to run alone was won.
    #[error("runs alone in term {term}: {reason}")]
    RunsAlone {
        /// The term won.
        term: Term,
        /// What made it ask.
        reason: String,
    },
    /// The standby has compared hashes.
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
