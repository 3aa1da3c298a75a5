//! The primary: the machine that runs the guest. It owns the commit authority of the gate, so that
//! every effect that leaves was released here (P1), and it alone decides when it may run alone
//! (P2).
//!
//! ```text
//!  begin, after_takeover
//!       |
//!       v      connected        welcome         pre-copy done       sealed           ack
//! +-> ALONE ------------> JOINING ----> COPYING ----------> SEALING ------> ARMING ----> PROTECTED
//! |   ^  ^                   |             |                   |              |             | |
//! |   |  +-- link lost ------+-------------+-------------------+              |             | |
//! |   |      (no standby can hold a checkpoint: the arbiter is not asked)     |             | |
//! |   |                                                                       |             | |
//! |   +-- the standby says Bye: it has given its checkpoint up ---------------+-------------+ |
//! |   |                                                                       |             | |
//! |   +------------------------- Bye ------------------ DETACHING <-----------+- run alone -+ |
//! |                                                        |                  |             | |
//! |        granted                                         v    link lost, silence          | |
//! +------------------------ DOUBTING, the arbiter asked <--+------------------+-------------+ |
//! |                             |       ^ unreachable: asked again later                      |
//! |                      denied v       +---                                                  |
//! |                          STOPPED (fenced)      <-- fenced, power-off, operator's stop ----+
//! |   run alone                                          (from every state)
//! +------------- WAITING FOR THE OPERATOR <-- as DOUBTING, where there is no arbiter
//! ```
//!
//! The gate is open in ALONE, JOINING and COPYING, and holds in all other states. From ARMING on, a
//! standby may hold a complete checkpoint of this term and may win the next one. From there, the
//! way back to ALONE leads through the arbiter, or through the standby's statement that it has
//! given up its checkpoint.
//!
//! A *stalled* machine (a thread that its output needs is stuck) serves no client. In any state it
//! gives up its standby, so that the standby asks the arbiter, and it waits before it asks itself
//! (P7).

mod disks;
mod io;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use io_gate::host::{CommitAuthority, Epoch, Term};

pub use io::{Action, Event, Report};

use crate::disks::{FlushMode, Holds, Seq};
use crate::handshake::{self, Hello};
use crate::standby::TakenOver;
use crate::wire::{ByeReason, Frame, Heartbeat, Message, Outgoing, PROTOCOL, WireError};
use crate::{Backoff, Illegal, LinkId, Time, deliberate};

/// Settings of the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrimaryOptions {
    /// Whether there is an arbiter. Without one an operator decides.
    pub arbiter: bool,
    /// Whether to look for a standby from the start.
    pub protect: bool,
    /// Interval between heartbeats.
    pub heartbeat_interval: Duration,
    /// How long the standby may be silent once it may hold a checkpoint.
    pub heartbeat_timeout: Duration,
    /// How long a standby that is alive may leave a checkpoint unacknowledged, while output waits
    /// for it (P7).
    pub ack_timeout: Duration,
    /// How long the standby may be silent before it may hold a checkpoint. It delays no output
    /// then.
    pub setup_timeout: Duration,
    /// Wait before an arbiter that did not answer is asked again.
    pub arbiter_retry: Backoff,
    /// Wait before a standby that could not be joined is tried again.
    pub connect_retry: Backoff,
    /// The most epochs that are sealed and not acknowledged: with this many, no epoch is sealed and
    /// the guest runs on.
    pub max_in_flight: usize,
}

/// The default of [`PrimaryOptions::max_in_flight`].
pub const MAX_IN_FLIGHT: usize = 4;

impl Default for PrimaryOptions {
    fn default() -> Self {
        Self {
            arbiter: true,
            protect: true,
            heartbeat_interval: Duration::from_millis(50),
            heartbeat_timeout: Duration::from_millis(500),
            ack_timeout: Duration::from_secs(30),
            setup_timeout: Duration::from_secs(10),
            arbiter_retry: Backoff {
                first: Duration::from_millis(50),
                longest: Duration::from_secs(2),
            },
            connect_retry: Backoff {
                first: Duration::from_millis(200),
                longest: Duration::from_secs(5),
            },
            max_in_flight: MAX_IN_FLIGHT,
        }
    }
}

/// The states; see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Runs without a standby; the gate is open.
    Alone,
    /// Waits for a standby's answer; the gate is open.
    Joining,
    /// Sends memory while the guest runs; the gate is open.
    Copying,
    /// Takes the first checkpoint.
    Sealing,
    /// Sends the first checkpoint.
    Arming,
    /// A standby holds an acknowledged checkpoint.
    Protected,
    /// The standby was asked to give up its checkpoint.
    Detaching,
    /// The standby is unreachable, and the arbiter was asked.
    Doubting,
    /// The standby is unreachable, and there is no arbiter.
    WaitingForOperator,
    /// Performs nothing more.
    Stopped,
}

impl Phase {
    /// The name of the state in the status.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Joining => "joining",
            Self::Copying => "copying",
            Self::Sealing => "sealing",
            Self::Arming => "arming",
            Self::Protected => "protected",
            Self::Detaching => "detaching",
            Self::Doubting => "doubting",
            Self::WaitingForOperator => "waiting-for-operator",
            Self::Stopped => "stopped",
        }
    }

    /// Whether a standby may hold a complete checkpoint of this term, and may therefore win the
    /// next one (P2).
    #[must_use]
    pub const fn standby_may_take_over(self) -> bool {
        matches!(
            self,
            Self::Arming
                | Self::Protected
                | Self::Detaching
                | Self::Doubting
                | Self::WaitingForOperator
        )
    }
}

/// Counted as this many failures in a row: an early retry would most likely fail in the same way.
const UNLIKELY: u32 = 8;

/// The connection with one standby.
#[derive(Debug)]
struct Session {
    link: LinkId,
    hello: Box<Hello>,
    heard: Time,
    beat: Time,
    beats: u64,
    /// The time by which the standby must have given up its checkpoint.
    detach_by: Option<Time>,
    /// The standby's number for this session, once it has welcomed this side.
    theirs: Option<u64>,
}

/// A question to the arbiter.
#[derive(Debug)]
struct Asking {
    why: String,
    failures: u32,
    /// When to ask again; `None` while an answer is awaited.
    retry: Option<Time>,
    /// Do not ask before: until then the standby of a stuck machine has its turn (P7).
    not_before: Time,
}

/// See the module.
#[derive(Debug)]
pub struct Primary {
    authority: CommitAuthority,
    options: PrimaryOptions,
    term: Term,
    phase: Phase,
    session: Option<Session>,
    asking: Option<Asking>,
    /// When to look for a standby; `None`: do not look.
    search: Option<Time>,
    /// The driver is trying to reach a standby.
    trying: bool,
    search_failures: u32,
    sealed: Option<Epoch>,
    acknowledged: Option<Epoch>,
    in_flight: VecDeque<(Epoch, Time)>,
    /// Why the machine makes no progress; `None` if it does.
    stalled: Option<String>,
    /// What the standby reports to lack for continuing the guest.
    lack: Option<String>,
    reason: Option<String>,
    /// Why the last standby that was reached refuses this machine.
    refusal: Option<String>,
    /// What a machine with own disks waits for.
    disks: Option<Holds>,
}

type Result<T = Vec<Action>> = core::result::Result<T, Illegal>;

impl Primary {
    /// A machine that begins in `term`, which it has won; or in term 0 if there is no arbiter.
    #[must_use]
    pub fn begin(
        authority: CommitAuthority,
        options: PrimaryOptions,
        term: Term,
        now: Time,
    ) -> (Self, Vec<Action>) {
        Self::start(authority, options, term, (None, None), now)
    }

    /// As [`begin`](Self::begin), for a machine with own disks.
    #[must_use]
    pub fn begin_with_disks(
        authority: CommitAuthority,
        options: PrimaryOptions,
        term: Term,
        mode: FlushMode,
        now: Time,
    ) -> (Self, Vec<Action>) {
        Self::start(authority, options, term, (None, Some(Holds::new(mode))), now)
    }

    /// A machine that continues from a standby's last checkpoint. The gate has adopted its
    /// requests.
    #[must_use]
    pub fn after_takeover(
        authority: CommitAuthority,
        options: PrimaryOptions,
        taken: TakenOver,
        now: Time,
    ) -> (Self, Vec<Action>) {
        let (term, epoch) = (taken.term(), taken.epoch());
        Self::start(authority, options, term, (Some(epoch), None), now)
    }

    /// As [`after_takeover`](Self::after_takeover), for a machine with own disks. R4: its outputs
    /// are held until this side's images are durable up to `flushed`, the last flush that the guest
    /// has seen complete in the checkpoint. The former primary may have told of it.
    #[must_use]
    pub fn after_takeover_with_disks(
        authority: CommitAuthority,
        options: PrimaryOptions,
        taken: TakenOver,
        (mode, flushed): (FlushMode, Seq),
        now: Time,
    ) -> (Self, Vec<Action>) {
        let (term, epoch) = (taken.term(), taken.epoch());
        let disks = Holds::after_takeover(mode, flushed);
        Self::start(authority, options, term, (Some(epoch), Some(disks)), now)
    }

    fn start(
        mut authority: CommitAuthority,
        options: PrimaryOptions,
        term: Term,
        (sealed, disks): (Option<Epoch>, Option<Holds>),
        now: Time,
    ) -> (Self, Vec<Action>) {
        let held = disks.as_ref().is_some_and(Holds::holds_takeover);
        let mut actions = Vec::new();
        if !held {
            actions.push(Action::RunAlone(authority.alone(term)));
        }
        let mut primary = Self {
            authority,
            options,
            term,
            phase: Phase::Alone,
            session: None,
            asking: None,
            search: options.protect.then_some(now),
            trying: false,
            search_failures: 0,
            sealed,
            acknowledged: None,
            in_flight: VecDeque::new(),
            stalled: None,
            lack: None,
            reason: None,
            refusal: None,
            disks,
        };
        primary.look_for_standby(now, &mut actions);
        (primary, actions)
    }

    /// The state.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The term in which the machine runs.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    /// The link to the standby, if any.
    #[must_use]
    pub fn link(&self) -> Option<LinkId> {
        self.session.as_ref().map(|session| session.link)
    }

    /// The last sealed epoch.
    #[must_use]
    pub fn sealed(&self) -> Option<Epoch> {
        self.sealed
    }

    /// The last acknowledged epoch.
    #[must_use]
    pub fn acknowledged(&self) -> Option<Epoch> {
        self.acknowledged
    }

    /// Number of epochs that are sealed and not acknowledged.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Why the machine is in its state, if there is more to say than the state's name.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.stalled.as_deref().or(self.reason.as_deref())
    }

    /// Why the last standby that was reached refuses this machine, if it does. Waiting does not
    /// help then.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// Whether the machine makes no progress.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.stalled.is_some()
    }

    /// What the standby lacks for continuing the guest. A machine whose standby lacks something is
    /// not protected, whatever its state.
    #[must_use]
    pub fn lack(&self) -> Option<&str> {
        self.lack.as_deref()
    }

    /// Whether the driver may seal an epoch now: not without a standby, and not while too many
    /// epochs are unacknowledged. The first epoch of a session is sealed only on
    /// [`Action::SealFirst`].
    #[must_use]
    pub fn may_seal(&self) -> bool {
        matches!(self.phase, Phase::Arming | Phase::Protected | Phase::Detaching)
            && self.in_flight.len()
                < self.options.max_in_flight + usize::from(deliberate!(OneTooMany))
    }

    /// When the next [`Event::Tick`] is due. An earlier tick does no harm.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        let session = self.session.as_ref().map(|session| {
            let silent = session.heard + self.patience();
            let beat = (self.phase != Phase::Joining)
                .then(|| session.beat + self.options.heartbeat_interval);
            [beat, session.detach_by].into_iter().flatten().fold(silent, Time::min)
        });
        let ack = self.in_flight.front().map(|(_, sealed)| *sealed + self.options.ack_timeout);
        let retry = self.asking.as_ref().and_then(|asking| asking.retry);
        let search = self.search.filter(|_| self.may_look());
        [session, ack, self.durable_deadline(), retry, search].into_iter().flatten().min()
    }

    /// Takes one event and returns the actions to perform, in order.
    ///
    /// # Errors
    /// When the state does not allow the driver's event. Nothing has changed then.
    pub fn handle(&mut self, now: Time, event: Event) -> Result {
        let mut actions = Vec::new();
        let out = &mut actions;
        if self.phase == Phase::Stopped {
            return Err(self.illegal(&event, "a stopped machine gets no more events"));
        }
        match event {
            Event::StandbyConnected { link, hello } => self.connected(now, link, hello, out)?,
            Event::ConnectFailed { reason } => self.connect_failed(now, reason, out)?,
            Event::Frame { link, frame } => {
                if self.is_current(link) {
                    self.frame(now, frame, out);
                }
            }
            Event::Garbled { link, error } => {
                if self.is_current(link) {
                    self.garbled(now, &error, out);
                }
            }
            Event::Unfit { link, reason } => {
                if self.is_current(link) {
                    self.unfit(now, reason, out);
                }
            }
            Event::LinkLost { link, reason } => {
                if self.is_current(link) {
                    self.lose(now, format!("the link to the standby was lost: {reason}"), out);
                }
            }
            Event::Progress { link } => {
                if self.is_current(link) {
                    self.progress(now, out);
                }
            }
            Event::PrecopyDone { link } => {
                if self.is_current(link) {
                    self.precopy_done(out)?;
                }
            }
            Event::Sealed { link, epoch } => self.on_sealed(now, link, epoch)?,
            Event::Stalled { reason } => self.stall(now, reason, out),
            Event::Recovered => self.recover(now, out),
            Event::Tick => self.tick(now, out),
            Event::ArbiterGranted { term } => self.granted(now, term, out)?,
            Event::ArbiterDenied { term, holder } => self.denied(term, &holder, out)?,
            Event::ArbiterUnreachable { reason } => self.unreachable(now, reason, out)?,
            Event::OperatorProtect => self.protect(now, out)?,
            Event::OperatorRunAlone => self.operator_alone(now, out)?,
            Event::OperatorStop => {
                let reason = "stopped by the operator".to_string();
                self.leave(ByeReason::Stopped, reason, out);
            }
            Event::GuestPoweredOff => {
                self.leave(ByeReason::PoweredOff, "the guest has powered off".to_string(), out);
            }
            Event::Fenced { .. } if deliberate!(IgnoreFence) => {}
            Event::Fenced { reason } => self.fence(reason, out),
            Event::Disks(event) => self.disks(now, event, out)?,
        }
        Ok(actions)
    }

    fn illegal(&self, event: &Event, expected: &'static str) -> Illegal {
        Illegal { machine: "the primary", state: self.phase.name(), event: event.name(), expected }
    }

    fn illegal_named(&self, event: &'static str, expected: &'static str) -> Illegal {
        Illegal { machine: "the primary", state: self.phase.name(), event, expected }
    }

    /// A link that this machine has closed may still deliver frames: they are ignored.
    fn is_current(&self, link: LinkId) -> bool {
        self.session.as_ref().is_some_and(|session| session.link == link)
    }

    fn patience(&self) -> Duration {
        if self.phase.standby_may_take_over() {
            self.options.heartbeat_timeout
        } else {
            self.options.setup_timeout
        }
    }

    // ---- search for a standby, and join it ----

    fn may_look(&self) -> bool {
        let free = self.phase == Phase::Alone && !self.trying && self.stalled.is_none();
        free && !self.holds_takeover()
    }

    fn look_for_standby(&mut self, now: Time, out: &mut Vec<Action>) {
        let due = self.search.is_some_and(|time| time <= now);
        if due && self.may_look() {
            self.trying = true;
            out.push(Action::Connect);
        }
    }

    fn search_later(&mut self, now: Time) {
        if self.search.is_some() {
            self.search_failures += 1;
            self.search = Some(now + self.options.connect_retry.after(self.search_failures));
        }
    }

    fn protect(&mut self, now: Time, out: &mut Vec<Action>) -> Result<()> {
        if self.stalled.is_some() {
            return Err(self.illegal_named(
                "operator: protect",
                "a stalled machine does not connect to a standby",
            ));
        }
        if self.phase.standby_may_take_over() {
            return Err(self.illegal_named(
                "operator: protect",
                "a standby may hold a checkpoint of this machine: end its protection first (`run-alone`)",
            ));
        }
        if self.phase != Phase::Alone {
            // A standby that is being joined holds no checkpoint yet, and may hang.
            self.leave_standby(now, "the operator has named another standby", out);
        }
        // The reason and the failures belong to the former address.
        self.reason = None;
        self.search_failures = 0;
        self.search = Some(now);
        self.look_for_standby(now, out);
        Ok(())
    }

    fn connect_failed(&mut self, now: Time, reason: String, out: &mut Vec<Action>) -> Result<()> {
        if !self.trying {
            return Err(self.illegal_named("connect failed", "no connection was asked for"));
        }
        self.trying = deliberate!(SearchOnce);
        self.search_later(now);
        self.reason = Some(format!("no standby: {reason}"));
        out.push(Action::Report(Report::NoStandby { reason }));
        Ok(())
    }

    fn connected(
        &mut self,
        now: Time,
        link: LinkId,
        mut hello: Box<Hello>,
        out: &mut Vec<Action>,
    ) -> Result<()> {
        if self.phase != Phase::Alone {
            return Err(self.illegal_named("standby connected", "one standby at a time"));
        }
        hello.protocol = PROTOCOL;
        hello.term = self.term;
        // An unrequested connection is welcome too; one that the operator no longer wants is not.
        let unwanted = core::mem::take(&mut self.trying)
            && self.search.is_none()
            && !deliberate!(UnwantedJoined);
        if unwanted || self.stalled.is_some() {
            let reason = match &self.stalled {
                Some(reason) => {
                    format!("a stalled machine does not connect to a standby: {reason}")
                }
                None => "the operator has ended protection".to_string(),
            };
            out.push(Action::CloseLink { link, reason });
            return Ok(());
        }
        self.phase = Phase::Joining;
        if !deliberate!(ReasonKept) {
            self.reason = None;
            self.refusal = None;
        }
        self.session = Some(Session {
            link,
            hello: hello.clone(),
            heard: now,
            beat: now,
            beats: 0,
            detach_by: None,
            theirs: None,
        });
        self.send(Epoch(0), Message::Hello(hello), out);
        Ok(())
    }

    fn welcomed(&mut self, now: Time, theirs: Hello, out: &mut Vec<Action>) {
        let Some(session) = &mut self.session else { return };
        if theirs.session != session.hello.session && !deliberate!(AnyWelcome) {
            let (expected, found) = (session.hello.session, theirs.session);
            let why =
                format!("expected an answer for session {expected:#x}, found one for {found:#x}");
            return self.break_off(now, why, out);
        }
        if let Err(refusal) = handshake::compare(&session.hello, &theirs) {
            return self.unfit(now, refusal.to_string(), out);
        }
        let (link, options) = (session.link, session.hello.options);
        let images = handshake::images_to_send(&session.hello, &theirs);
        let number = theirs.standby_session;
        session.theirs = Some(number);
        self.phase = Phase::Copying;
        out.push(Action::Report(Report::Joined { release: theirs.release }));
        out.push(Action::StartPrecopy { link, options, session: number, images });
    }

    fn unfit(&mut self, now: Time, reason: String, out: &mut Vec<Action>) {
        // It will probably not fit soon.
        self.search_failures = self.search_failures.max(UNLIKELY);
        self.break_off(now, reason, out);
    }

    fn precopy_done(&mut self, out: &mut Vec<Action>) -> Result<()> {
        let Some(session) = self.session.as_ref().filter(|_| self.phase == Phase::Copying) else {
            return Err(self.illegal_named("pre-copy done", "no pre-copy is in progress"));
        };
        let link = session.link;
        self.phase = Phase::Sealing;
        // From here on effects belong to an epoch that a standby will acknowledge.
        if !deliberate!(NoHold) {
            out.push(Action::Hold);
        }
        out.push(Action::SealFirst { link });
        Ok(())
    }

    fn on_sealed(&mut self, now: Time, link: LinkId, epoch: Epoch) -> Result<()> {
        if !self.is_current(link) && !deliberate!(SealedForAnother) {
            // P4: memory that was marked clean for an ended session would be missing in the next
            // one.
            return Err(self.illegal_named("sealed", "the session of this epoch has ended"));
        }
        if self.phase != Phase::Sealing && !self.may_seal() {
            return Err(self.illegal_named(
                "sealed",
                "an epoch is sealed only with a standby, and while few enough are unacknowledged",
            ));
        }
        let follows = match self.sealed {
            // The gate counts epochs across sessions: epochs sealed but not sent leave a gap.
            Some(last) if self.phase == Phase::Sealing => epoch > last,
            Some(last) => epoch == last.next(),
            None => true,
        };
        if !follows {
            return Err(self.illegal_named("sealed", "epochs are sealed in order, without a gap"));
        }
        self.sealed = Some(epoch);
        self.in_flight.push_back((epoch, now));
        if self.phase == Phase::Sealing {
            self.phase = Phase::Arming;
            // The patience is shorter from now on, so silence is counted from now.
            if let Some(session) = &mut self.session {
                session.heard = session.heard.max(now);
            }
        }
        Ok(())
    }

    // ---- what the standby says ----

    /// Bytes of a frame have arrived: the standby is alive.
    fn progress(&mut self, now: Time, out: &mut Vec<Action>) {
        if self.is_silent(now) && !deliberate!(ProgressForgives) {
            return self.lose_silent(now, out);
        }
        if let Some(session) = &mut self.session {
            session.heard = now;
        }
    }

    fn frame(&mut self, now: Time, frame: Frame, out: &mut Vec<Action>) {
        // A process that slept must not take an old acknowledgement as a sign that nothing has
        // happened meanwhile (P2).
        if self.is_silent(now) && !deliberate!(StaleAck) {
            return self.lose_silent(now, out);
        }
        let Frame { header, message } = frame;
        let kind = message.kind().name();
        if let Message::Refuse { reason } = message {
            return self.refused(now, reason, out);
        }
        if header.term != self.term && !deliberate!(SkipTermCheck) {
            let (found, ours) = (header.term, self.term);
            let why = format!(
                "expected a message of term {ours} from the standby, found one of term {found}"
            );
            return self.break_off(now, why, out);
        }
        if let Some(session) = &mut self.session {
            session.heard = now;
        }
        let running = self.phase != Phase::Joining;
        match message {
            Message::Welcome(theirs) if !running => self.welcomed(now, *theirs, out),
            Message::Ack if self.phase.standby_may_take_over() => self.ack(now, header.epoch, out),
            Message::Verified(verified) if self.phase.standby_may_take_over() => {
                let epoch = header.epoch;
                out.push(Action::Report(Report::Verified { epoch, verified }));
                if !verified.agree {
                    self.distrust(now, out);
                }
            }
            Message::Heartbeat(beat) if running => {
                self.send(Epoch(0), Message::HeartbeatReply(beat), out);
            }
            Message::Readiness { lack, session, from } if running => {
                self.readiness(lack, (session, from), out);
            }
            Message::HeartbeatReply(_) if running => {
                if deliberate!(HeartbeatAsAck)
                    && let Some((front, _)) = self.in_flight.front().copied()
                {
                    self.ack(now, front, out);
                }
            }
            Message::Bye { reason, session, from, why } if reason != ByeReason::Detach => {
                self.bye(now, reason, (session, from), why, out);
            }
            _ => {
                let why = format!("the standby sent {kind} in state {}", self.phase.name());
                self.break_off(now, why, out);
            }
        }
    }

    fn ack(&mut self, now: Time, epoch: Epoch, out: &mut Vec<Action>) {
        let expected = self.in_flight.front().copied();
        let epoch = match expected {
            Some((front, _)) if deliberate!(CountAcks) => front,
            _ => epoch,
        };
        let Some((_, sealed_at)) = expected.filter(|(front, _)| *front == epoch) else {
            let expected = match expected {
                Some((front, _)) => format!("epoch {front} is the next"),
                None => "none is outstanding".to_string(),
            };
            let why = format!("the standby acknowledges epoch {epoch}, but {expected}");
            return self.break_off(now, why, out);
        };
        self.in_flight.pop_front();
        self.acknowledged = Some(epoch);
        if let Some(disks) = &mut self.disks {
            disks.acknowledged(epoch, sealed_at);
            return self.release_durable(now, out);
        }
        let early = deliberate!(ReleaseEarly) && self.in_flight.len() == 1;
        let proof = self.authority.acknowledged(if early { epoch.next() } else { epoch });
        out.push(Action::Release { proof, latency: now.since(sealed_at) });
        if self.phase == Phase::Arming {
            self.protected(epoch, out);
        }
    }

    fn protected(&mut self, epoch: Epoch, out: &mut Vec<Action>) {
        self.phase = Phase::Protected;
        self.search_failures = 0;
        self.report_protection(epoch, out);
    }

    /// This side's number for the session and the standby's, which is 0 before the standby has sent
    /// it.
    fn numbers(&self) -> Option<(u64, u64)> {
        let numbers = |session: &Session| (session.hello.session, session.theirs.unwrap_or(0));
        self.session.as_ref().map(numbers)
    }

    /// A replayed message of an earlier session says nothing about this one.
    fn readiness(&mut self, lack: Option<String>, said: (u64, u64), out: &mut Vec<Action>) {
        if self.numbers() != Some(said) || self.lack == lack {
            return;
        }
        self.lack = lack;
        if self.phase == Phase::Protected
            && let Some(epoch) = self.acknowledged
        {
            self.report_protection(epoch, out);
        }
    }

    fn report_protection(&self, epoch: Epoch, out: &mut Vec<Action>) {
        out.push(Action::Report(match &self.lack {
            None => Report::Protected { epoch },
            Some(lack) => Report::Degraded { reason: lack.clone() },
        }));
    }

    fn refused(&mut self, now: Time, reason: String, out: &mut Vec<Action>) {
        if matches!(self.phase, Phase::Joining | Phase::Arming) {
            // It will probably not change its mind soon.
            self.search_failures = self.search_failures.max(UNLIKELY);
        }
        self.refusal = Some(reason.clone());
        if self.phase == Phase::Arming && deliberate!(RefuseOpens) {
            self.close(reason.clone(), out);
            return self.go_alone(now, true, reason, out);
        }
        // P1: while a first checkpoint is under way, a refusal does not open the gate. It may be a
        // replay from an earlier session (simulation, seed 426238321002812), and the standby may
        // hold that checkpoint by now.
        self.lose(now, format!("the standby refuses: {reason}"), out);
    }

    fn garbled(&mut self, now: Time, error: &WireError, out: &mut Vec<Action>) {
        self.lose(now, format!("from the standby: {error}"), out);
    }

    /// A Bye counts only for the session in which it was sent (P1).
    fn bye(
        &mut self,
        now: Time,
        reason: ByeReason,
        said: (u64, u64),
        why: String,
        out: &mut Vec<Action>,
    ) {
        let Some((session, theirs)) = self.numbers() else { return };
        if (session, theirs) == said || deliberate!(AnyonesBye) {
            return self.renounced(now, reason, &why, out);
        }
        let why = format!(
            "the standby ends session {:#x} as {:#x}, expected session {session:#x} with {theirs:#x}",
            said.0, said.1
        );
        self.break_off(now, why, out);
    }

    /// The standby has said that it will not take over: no other machine can run this guest now.
    fn renounced(&mut self, now: Time, reason: ByeReason, why: &str, out: &mut Vec<Action>) {
        let held = !matches!(self.phase, Phase::Joining | Phase::Copying);
        let mut text = match reason {
            ByeReason::Detached => "the standby has discarded its checkpoint".to_string(),
            _ => "the standby was stopped by its operator".to_string(),
        };
        if !why.is_empty() {
            text = format!("{text}: {why}");
            // The next session may fail in the same way.
            self.search_failures = self.search_failures.max(UNLIKELY);
            out.push(Action::Report(Report::LinkLost { reason: text.clone() }));
        }
        if self.set_may_name_standby() {
            // R6: the standby's word does not take its image out of the set. A power loss here, and
            // it could be started without what this machine tells from now on.
            return self.lose(now, text, out);
        }
        self.close(text.clone(), out);
        self.go_alone(now, held, text, out);
    }

    /// P8: the standby's machine differs from this one. It says Bye by itself; otherwise it is
    /// asked to.
    fn distrust(&mut self, now: Time, out: &mut Vec<Action>) {
        if matches!(self.phase, Phase::Arming | Phase::Protected) {
            self.detach(now, out);
            self.reason =
                Some("the standby's memory or state differs from this side's".to_string());
        }
    }

    fn detach(&mut self, now: Time, out: &mut Vec<Action>) {
        self.say_bye(ByeReason::Detach, out);
        self.phase = Phase::Detaching;
        if let Some(session) = &mut self.session {
            session.detach_by =
                (!deliberate!(DetachForEver)).then(|| now + self.options.setup_timeout);
        }
    }

    // ---- the link is lost ----

    /// Tells the standby why, and continues as if the link was lost.
    fn break_off(&mut self, now: Time, why: String, out: &mut Vec<Action>) {
        self.refuse_further(&why, out);
        self.lose(now, why, out);
    }

    fn refuse_further(&self, why: &str, out: &mut Vec<Action>) {
        self.send(Epoch(0), Message::Refuse { reason: why.to_string() }, out);
    }

    fn lose(&mut self, now: Time, why: String, out: &mut Vec<Action>) {
        let armed = self.phase.standby_may_take_over();
        let held = self.phase == Phase::Sealing && !deliberate!(StaysHeld);
        if armed {
            out.push(Action::Hold);
        }
        if armed && deliberate!(FlushOnLinkError) {
            out.push(Action::RunAlone(self.authority.alone(self.term)));
        }
        self.close(why.clone(), out);
        out.push(Action::Report(Report::LinkLost { reason: why.clone() }));
        if armed {
            self.doubt(now, why, out);
        } else {
            self.go_alone(now, held, why, out);
        }
    }

    /// P7: tells the standby, which asks the arbiter. This side asks only later, since the guest is
    /// better off on the standby.
    fn stall(&mut self, now: Time, reason: String, out: &mut Vec<Action>) {
        out.push(Action::Report(Report::Stalled { reason: reason.clone() }));
        self.stalled = Some(reason.clone());
        if self.session.is_some() {
            if !deliberate!(StallKeeps) {
                self.break_off(now, reason, out);
            }
        } else if let Some(asking) = &mut self.asking {
            asking.not_before = now + self.options.setup_timeout;
            asking.retry = asking.retry.map(|retry| retry.max(asking.not_before));
        }
    }

    fn recover(&mut self, now: Time, out: &mut Vec<Action>) {
        if self.stalled.take().is_none() || deliberate!(NeverRecovers) {
            self.stalled = deliberate!(NeverRecovers).then(String::new);
            return;
        }
        out.push(Action::Report(Report::Recovered));
        if let Some(asking) = &mut self.asking {
            asking.not_before = now;
            asking.retry = asking.retry.map(|_| now);
        }
        self.tick(now, out);
    }

    fn close(&mut self, reason: String, out: &mut Vec<Action>) {
        if let Some(session) = self.session.take() {
            out.push(Action::CloseLink { link: session.link, reason });
        }
        if !deliberate!(ForgetInFlight) {
            self.in_flight.clear();
        }
        if let Some(disks) = &mut self.disks {
            disks.session_ended();
        }
        if !deliberate!(ForgetLack) {
            self.lack = None;
        }
    }

    fn go_alone(&mut self, now: Time, held: bool, why: String, out: &mut Vec<Action>) {
        self.phase = Phase::Alone;
        self.asking = None;
        self.reason = Some(why);
        self.search_later(now);
        if held && !deliberate!(ForgetRunAlone) {
            out.push(Action::RunAlone(self.authority.alone(self.term)));
        }
    }

    fn doubt(&mut self, now: Time, why: String, out: &mut Vec<Action>) {
        self.reason = Some(why.clone());
        if self.options.arbiter && deliberate!(AloneWithoutArbiter) {
            self.term = self.term.next();
            self.phase = Phase::Alone;
            return out.push(Action::RunAlone(self.authority.alone(self.term)));
        }
        if self.options.arbiter {
            self.phase = Phase::Doubting;
            if self.stalled.is_some() {
                // It is the standby's turn. If the standby is gone too, this machine asks later,
                // and learns then whether it still has the right.
                let not_before = now + self.options.setup_timeout;
                self.asking =
                    Some(Asking { why, failures: 0, retry: Some(not_before), not_before });
                return;
            }
            out.push(Action::AskArbiter { term: self.term.next(), why: why.clone() });
            self.asking = Some(Asking { why, failures: 0, retry: None, not_before: now });
        } else {
            self.phase = Phase::WaitingForOperator;
            out.push(Action::Report(Report::WaitingForOperator { reason: why }));
        }
    }

    fn is_silent(&self, now: Time) -> bool {
        self.session.as_ref().is_some_and(|session| now.since(session.heard) > self.patience())
    }

    fn lose_silent(&mut self, now: Time, out: &mut Vec<Action>) {
        let patience = self.patience();
        self.lose(now, format!("no message from the standby for {patience:?}"), out);
    }

    fn tick(&mut self, now: Time, out: &mut Vec<Action>) {
        if self.is_silent(now) && !deliberate!(SilentStandby) {
            self.lose_silent(now, out);
        }
        let overdue = |session: &Session| session.detach_by.is_some_and(|by| by <= now);
        if self.session.as_ref().is_some_and(overdue) {
            if deliberate!(DetachTimesOut) {
                self.close(String::new(), out);
                return self.go_alone(now, true, String::new(), out);
            }
            self.lose(now, "the standby does not discard its checkpoint".to_string(), out);
        }
        self.give_up_waiting(now, out);
        self.give_sign_of_life(now, out);
        if let Some(asking) = &mut self.asking
            && asking.retry.is_some_and(|time| time <= now)
        {
            asking.retry = None;
            out.push(Action::AskArbiter { term: self.term.next(), why: asking.why.clone() });
        }
        self.look_for_standby(now, out);
    }

    /// P7: a standby that is alive and does not acknowledge would delay output for ever. It may
    /// have taken the checkpoint, so the arbiter decides.
    fn give_up_waiting(&mut self, now: Time, out: &mut Vec<Action>) {
        let limit = self.options.ack_timeout;
        if self.durable_deadline().is_some_and(|due| due <= now) {
            let why = format!("the standby's disks have not been durable for {limit:?}");
            return self.break_off(now, why, out);
        }
        let Some((epoch, mut sealed)) = self.in_flight.front().copied() else { return };
        if deliberate!(LastSealCounts) {
            sealed = self.in_flight.back().map_or(sealed, |(_, last)| *last);
        }
        if now.since(sealed) >= limit && !deliberate!(WaitForAck) {
            let why = format!("epoch {epoch} has not been acknowledged for {limit:?}");
            self.break_off(now, why, out);
        }
    }

    fn give_sign_of_life(&mut self, now: Time, out: &mut Vec<Action>) {
        let interval = self.options.heartbeat_interval;
        if self.session.as_ref().is_some_and(|session| session.beat + interval <= now)
            && let Some((link, frame)) = self.sign_of_life(now)
        {
            out.push(Action::Send { link, frame });
        }
    }

    /// The heartbeat to send, also for a driver whose event thread is busy. `None` before the
    /// standby has welcomed this machine.
    pub fn sign_of_life(&mut self, now: Time) -> Option<(LinkId, Outgoing)> {
        let session = self.session.as_mut().filter(|_| self.phase != Phase::Joining)?;
        session.beat = now;
        session.beats += 1;
        let message = Message::Heartbeat(Heartbeat { sequence: session.beats, sent: now.0 });
        Some((session.link, Outgoing { epoch: Epoch(0), term: self.term, message }))
    }

    // ---- the arbiter and the operator ----

    fn check_answer(&self, event: &'static str, term: Option<Term>) -> Result<()> {
        let awaited = self.asking.as_ref().is_some_and(|asking| asking.retry.is_none());
        if !awaited || term.is_some_and(|term| term != self.term.next()) {
            return Err(self.illegal_named(event, "the arbiter was not asked for this term"));
        }
        Ok(())
    }

    fn granted(&mut self, now: Time, term: Term, out: &mut Vec<Action>) -> Result<()> {
        self.check_answer("arbiter: granted", Some(term))?;
        // Restore the original reason: the arbiter's failures no longer matter.
        if !deliberate!(ReasonOfArbiter) {
            self.reason = self.asking.as_ref().map(|asking| asking.why.clone());
        }
        self.win(now, out);
        Ok(())
    }

    /// This machine has won the next term: no standby of the old term can take over any more.
    fn win(&mut self, now: Time, out: &mut Vec<Action>) {
        if !deliberate!(ReuseTerm) {
            self.term = self.term.next();
        }
        let why = self.reason.take().unwrap_or_default();
        out.push(Action::Report(Report::RunsAlone { term: self.term, reason: why.clone() }));
        self.go_alone(now, true, why, out);
    }

    fn denied(&mut self, term: Term, holder: &str, out: &mut Vec<Action>) -> Result<()> {
        self.check_answer("arbiter: denied", Some(term))?;
        if deliberate!(IgnoreFence) {
            return Ok(());
        }
        self.fence(format!("term {term} is held by {holder}"), out);
        Ok(())
    }

    fn unreachable(&mut self, now: Time, reason: String, out: &mut Vec<Action>) -> Result<()> {
        self.check_answer("arbiter: unreachable", None)?;
        if let Some(asking) = &mut self.asking {
            asking.failures += 1;
            if !deliberate!(AskOnce) {
                let again = now + self.options.arbiter_retry.after(asking.failures);
                asking.retry = Some(again.max(asking.not_before));
            }
            self.reason = Some(format!("{}; the arbiter is unreachable: {reason}", asking.why));
        }
        out.push(Action::Report(Report::ArbiterUnreachable { reason }));
        Ok(())
    }

    fn operator_alone(&mut self, now: Time, out: &mut Vec<Action>) -> Result<()> {
        match self.phase {
            Phase::Joining | Phase::Copying | Phase::Sealing => {
                self.search = None;
                self.leave_standby(now, "detached by the operator", out);
                Ok(())
            }
            // The standby's Bye makes the arbiter unnecessary. If it does not come, the arbiter is
            // asked.
            Phase::Arming | Phase::Protected => {
                self.detach(now, out);
                self.search = None;
                Ok(())
            }
            Phase::WaitingForOperator => {
                self.win(now, out);
                Ok(())
            }
            Phase::Alone => {
                self.search = None;
                Ok(())
            }
            Phase::Detaching | Phase::Doubting | Phase::Stopped => Err(self.illegal_named(
                "operator: run alone",
                "the standby or the arbiter has been asked, and its answer decides",
            )),
        }
    }

    /// Leaves a standby that was not sent a checkpoint: no question to the arbiter is needed.
    fn leave_standby(&mut self, now: Time, why: &str, out: &mut Vec<Action>) {
        self.say_bye(ByeReason::Detach, out);
        let held = self.phase == Phase::Sealing && !deliberate!(StaysHeldForOperator);
        self.close(why.to_string(), out);
        self.go_alone(now, held, why.to_string(), out);
    }

    fn leave(&mut self, bye: ByeReason, reason: String, out: &mut Vec<Action>) {
        self.say_bye(bye, out);
        self.stop(reason, false, out);
    }

    fn fence(&mut self, reason: String, out: &mut Vec<Action>) {
        out.push(Action::Hold);
        self.stop(reason, true, out);
    }

    fn stop(&mut self, reason: String, fenced: bool, out: &mut Vec<Action>) {
        self.close(reason.clone(), out);
        self.phase = Phase::Stopped;
        self.asking = None;
        self.reason = Some(reason.clone());
        out.push(Action::Stop { reason, fenced });
    }

    fn say_bye(&self, reason: ByeReason, out: &mut Vec<Action>) {
        if let Some(session) = &self.session {
            let (session, from) = (session.theirs.unwrap_or(0), session.hello.session);
            let why = String::new();
            self.send(Epoch(0), Message::Bye { reason, session, from, why }, out);
        }
    }

    fn send(&self, epoch: Epoch, message: Message, out: &mut Vec<Action>) {
        if let Some(session) = &self.session {
            let frame = Outgoing { epoch, term: self.term, message };
            out.push(Action::Send { link: session.link, frame });
        }
    }
}
