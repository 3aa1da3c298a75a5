//! The standby: the machine that holds the last acknowledged checkpoint. It acknowledges only a
//! checkpoint that it has received whole, has verified, and can apply (P4). It takes over only in a
//! term that it has won (P2).
//!
//! ```text
//!             connected             Hello fits              first checkpoint
//! WAITING ----------------> GREETING ---------> FILLING ----- checked ------> READY <-+ checked:
//!   ^ ^ ^                      |                   |                           | | |  | Ack, Apply
//!   | | +-- refused, lost -----+                   |                           | | +--+
//!   | +---- lost: Discard -------------------------+                           | |
//!   | +---- Bye (detach), or hashes that differ: Bye, Discard -----------------+ |
//!   |                                                                            |
//!   |    denied: Discard                         lost, silence, a corrupt stream v
//!   +------------------------- DOUBTING, the arbiter asked <---------------------+
//!   |                            |       ^ unreachable: asked again later        |
//!   |                    granted v       +---                                    |
//!   |                          ACTIVE (TakeOver)                                 |
//!   |                            ^ take over                                     |
//!   |                            |                                               |
//!   +-- discard, or a Hello -- WAITING FOR THE OPERATOR <-- where there is no arbiter
//!       of a later term
//!
//! From every state: STOPPED, by Bye (powered off, stopped) or by the operator.
//! ```
//!
//! If the operator wants a takeover, READY goes to DOUBTING too, with the link still up.
//!
//! Received data is staged separately: a stream that is torn, corrupt or out of order drops the
//! staged data, and leaves the acknowledged checkpoint unchanged. While FILLING there is no such
//! checkpoint, so memory is written as it arrives.

mod disks;
mod io;
mod staging;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use io_gate::host::{Epoch, Term};

pub use io::{Action, Event, Lack, Report, TakenOver};
pub use staging::{CheckedPages, Checkpoint};

use crate::disks::Standing;
use crate::handshake::{self, Hello};
use crate::wire::{
    ByeReason, Frame, Hashes, Heartbeat, Message, Outgoing, PROTOCOL, Verified, WireError,
};
use crate::{Backoff, Illegal, LinkId, Time, deliberate};
use staging::Staging;

/// Settings of the standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StandbyOptions {
    /// Whether there is an arbiter. Without one an operator decides.
    pub arbiter: bool,
    /// Interval between heartbeats while data arrives: replies to the primary's heartbeats wait
    /// behind the data.
    pub heartbeat_interval: Duration,
    /// How long the primary may be silent once there is a checkpoint.
    pub heartbeat_timeout: Duration,
    /// How long the primary may be silent before there is a checkpoint.
    pub setup_timeout: Duration,
    /// Wait before an arbiter that did not answer is asked again.
    pub arbiter_retry: Backoff,
    /// Staged bytes allowed beyond the size of guest memory.
    pub staging_slack: u64,
}

impl Default for StandbyOptions {
    fn default() -> Self {
        Self {
            arbiter: true,
            heartbeat_interval: Duration::from_millis(50),
            heartbeat_timeout: Duration::from_millis(500),
            setup_timeout: Duration::from_secs(10),
            arbiter_retry: Backoff {
                first: Duration::from_millis(50),
                longest: Duration::from_secs(2),
            },
            staging_slack: 32 << 20,
        }
    }
}

/// The states; see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Holds nothing, and waits for a primary.
    Waiting,
    /// A primary has connected.
    Greeting,
    /// Memory arrives; there is no complete checkpoint yet.
    Filling,
    /// Holds a complete checkpoint, and receives the next.
    Ready,
    /// The primary is unreachable, and the arbiter was asked.
    Doubting,
    /// The primary is unreachable, and there is no arbiter.
    WaitingForOperator,
    /// Has taken over: the machine continues as a primary.
    Active,
    /// Does nothing more.
    Stopped,
}

impl Phase {
    /// The name of the state in the status.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Greeting => "greeting",
            Self::Filling => "filling",
            Self::Ready => "ready",
            Self::Doubting => "doubting",
            Self::WaitingForOperator => "waiting-for-operator",
            Self::Active => "active",
            Self::Stopped => "stopped",
        }
    }
}

/// The connection with one primary.
#[derive(Debug)]
struct Session {
    link: LinkId,
    heard: Time,
    /// The last unrequested heartbeat, and the number of them.
    beat: Time,
    beats: u64,
    /// The primary's description of itself.
    hello: Option<Box<Hello>>,
    /// This side's number for this session, once it was sent.
    number: Option<u64>,
    staging: Staging,
    /// A checkpoint that the driver is checking for applicability.
    checking: Option<Arc<Checkpoint>>,
    /// The hashes of the primary's machine, while the driver still has to hash its own.
    to_verify: Option<(Epoch, Hashes)>,
}

impl Session {
    fn new(link: LinkId, now: Time) -> Self {
        Self {
            link,
            heard: now,
            beat: now,
            beats: 0,
            hello: None,
            number: None,
            staging: Staging::default(),
            checking: None,
            to_verify: None,
        }
    }
}

/// What this side holds, and whose it is.
#[derive(Clone, Debug)]
struct Holding {
    name: String,
    /// The primary's term.
    term: Term,
    /// The last checkpoint acknowledged.
    epoch: Epoch,
}

/// A question to the arbiter.
#[derive(Debug)]
struct Asking {
    why: String,
    failures: u32,
    /// When to ask again; `None` while an answer is awaited.
    retry: Option<Time>,
    /// The arbiter is not asked at all: this side lacks something that the guest cannot run
    /// without.
    held: bool,
    /// When the arbiter was last to be asked, this side could not have continued; this has not been
    /// tried again since.
    not_ready: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Standby {
    options: StandbyOptions,
    phase: Phase,
    /// The highest known term: an older primary has been replaced (P2).
    term: Term,
    /// The holder of that term, if an arbiter grants terms: another holder of the same term has
    /// been replaced too.
    leader: Option<String>,
    /// While waiting for the operator: a primary that wants to join and is not yet known to be
    /// newer.
    session: Option<Session>,
    holding: Option<Holding>,
    asking: Option<Asking>,
    /// What this side lacks.
    lack: Option<Lack>,
    reason: Option<String>,
    /// What a side with own disks may do with them.
    disks: Option<Standing>,
}

type Result<T = Vec<Action>> = core::result::Result<T, Illegal>;

impl Standby {
    /// A standby that holds nothing and knows no term.
    #[must_use]
    pub fn new(options: StandbyOptions) -> Self {
        Self {
            options,
            phase: Phase::Waiting,
            term: Term(0),
            leader: None,
            session: None,
            holding: None,
            asking: None,
            lack: None,
            reason: None,
            disks: None,
        }
    }

    /// The state.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The highest known term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    /// The last acknowledged checkpoint, if one is held.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        self.holding.as_ref().map(|holding| holding.epoch)
    }

    /// Bytes of a checkpoint that is not yet whole.
    #[must_use]
    pub fn staged_bytes(&self) -> u64 {
        self.session.as_ref().map_or(0, |session| session.staging.bytes())
    }

    /// Why the machine is in its state, if there is more to say than the state's name.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// What this side lacks for continuing a guest.
    #[must_use]
    pub fn lack(&self) -> Option<&Lack> {
        self.lack.as_ref()
    }

    /// Whether the primary is unreachable and this side does not ask for the right to continue
    /// because of what it [lacks](Self::lack).
    #[must_use]
    pub fn is_held_back(&self) -> bool {
        self.asking.as_ref().is_some_and(|asking| asking.held || asking.not_ready)
    }

    /// When the next [`Event::Tick`] is due. An earlier tick does no harm. The driver must pass
    /// received frames first.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        let session = self.session.as_ref().map(|session| session.heard + self.patience());
        let retry = self.asking.as_ref().and_then(|asking| asking.retry);
        [session, retry].into_iter().flatten().min()
    }

    /// Takes one event and returns the actions to perform, in order.
    ///
    /// # Errors
    /// When the state does not allow the driver's event. Nothing has changed then.
    pub fn handle(&mut self, now: Time, event: Event) -> Result {
        let mut actions = Vec::new();
        let out = &mut actions;
        if matches!(self.phase, Phase::Stopped | Phase::Active) {
            return Err(self.illegal(event.name(), "this standby has ended"));
        }
        match event {
            Event::Connected { link } => self.connected(now, link, out)?,
            Event::Frame { link, frame } => {
                if self.is_current(link) {
                    self.check_not_checking(&frame)?;
                    self.frame(now, frame, out);
                }
            }
            Event::Progress { link } => {
                if self.is_current(link) {
                    self.progress(now, out);
                }
            }
            Event::Garbled { link, error } => {
                if self.is_current(link) {
                    self.garbled(&error, out);
                }
            }
            Event::LinkLost { link, reason } => {
                if self.is_current(link) {
                    self.lose(format!("the link to the primary was lost: {reason}"), out);
                }
            }
            Event::Described { ours } => self.described(*ours, out)?,
            Event::CannotHost { reason } => {
                self.check_described("cannot host")?;
                self.break_off(reason, out);
            }
            Event::Applicable { epoch } => self.applicable(epoch, out)?,
            Event::NotApplicable { epoch, reason } => {
                self.checking("not applicable", epoch)?;
                self.break_off(format!("checkpoint {epoch} cannot be applied: {reason}"), out);
            }
            Event::Hashed { epoch, hashes } => self.hashed(epoch, hashes, out)?,
            Event::CannotHash { epoch, reason } => self.cannot_hash(epoch, &reason, out)?,
            Event::CannotGoOn { reason } => self.cannot_go_on(&reason, out)?,
            Event::NotReady { reason } => self.not_ready(now, &reason, out)?,
            Event::Tick => self.tick(now, out),
            Event::ArbiterGranted { term } => self.granted(term, out)?,
            Event::ArbiterDenied { term, holder } => self.denied(term, &holder, out)?,
            Event::ArbiterUnreachable { reason } => self.unreachable(now, reason, out)?,
            Event::Resources { lack } => self.resources(lack, out),
            Event::OperatorTakeOver => self.operator_take_over(out)?,
            Event::OperatorDiscard => self.operator_discard(out)?,
            Event::OperatorStop => {
                self.say_bye(ByeReason::Stopped, String::new(), out);
                self.stop("stopped by the operator".to_string(), out);
            }
            Event::Disks(standing) => self.disks(standing, out)?,
        }
        Ok(actions)
    }

    fn illegal(&self, event: &'static str, expected: &'static str) -> Illegal {
        Illegal { machine: "the standby", state: self.phase.name(), event, expected }
    }

    /// A link that this machine has closed may still deliver frames: they are ignored.
    fn is_current(&self, link: LinkId) -> bool {
        self.session.as_ref().is_some_and(|session| session.link == link)
    }

    fn patience(&self) -> Duration {
        match self.phase {
            Phase::Ready | Phase::Doubting if !deliberate!(SlowSuspicion) => {
                self.options.heartbeat_timeout
            }
            _ => self.options.setup_timeout,
        }
    }

    // ---- a primary connects ----

    fn connected(&mut self, now: Time, link: LinkId, out: &mut Vec<Action>) -> Result<()> {
        if self.is_current(link) {
            return Err(self.illegal("connected", "the name of a link is never used twice"));
        }
        match self.phase {
            Phase::Waiting => {
                self.phase = Phase::Greeting;
                self.session = Some(Session::new(link, now));
            }
            // The primary may have been allowed to continue: its Hello will tell.
            Phase::WaitingForOperator if self.session.is_none() => {
                self.session = Some(Session::new(link, now));
            }
            // The same applies while this side is held back.
            Phase::Doubting
                if self.session.is_none()
                    && (self.is_held_back() || deliberate!(LetsInWhileAsking)) =>
            {
                self.session = Some(Session::new(link, now));
            }
            _ => {
                let reason = format!(
                    "this standby is {}: it accepts one primary at a time, try again later",
                    self.phase.name()
                );
                let message = Message::Refuse { reason: reason.clone() };
                let frame = Outgoing { epoch: Epoch(0), term: self.term, message };
                out.push(Action::Send { link, frame });
                out.push(Action::CloseLink { link, reason });
            }
        }
        Ok(())
    }

    fn hello(&mut self, hello: Box<Hello>, out: &mut Vec<Action>) {
        if hello.term < self.term && !deliberate!(AcceptOlderTerm) {
            let why = format!(
                "term: the primary runs in term {}, but this standby knows of term {}: that primary has been \
                 replaced, stop it",
                hello.term, self.term
            );
            return self.break_off(why, out);
        }
        if let Some(leader) = &self.leader
            && hello.term == self.term
            && *leader != hello.holder
        {
            let why = format!(
                "term: the primary {} runs in term {}, but this standby knows {leader} as its holder: the arbiter's \
                 data went back to an earlier state, or there are two arbiters; stop the wrong primary",
                hello.holder, hello.term
            );
            return self.break_off(why, out);
        }
        if let Some(holding) = &self.holding {
            // A primary in a later term was allowed to continue without this checkpoint.
            let same = deliberate!(SameTermDiscards) && hello.term == holding.term;
            if hello.name != holding.name || hello.term <= holding.term && !same {
                let why = format!(
                    "this standby holds epoch {} of `{}` in term {} and {}",
                    holding.epoch,
                    holding.name,
                    holding.term,
                    match self.phase {
                        Phase::WaitingForOperator =>
                            "waits for its operator (`take-over` or `discard`)",
                        _ => "takes over when the missing resources are there",
                    }
                );
                return self.break_off(why, out);
            }
            (self.term, self.leader) = (hello.term, None);
            let reason = format!("the primary continues in term {}", hello.term);
            self.discard(reason, out);
            self.asking = None;
            self.phase = Phase::Greeting;
        }
        if let Some(session) = &mut self.session {
            session.hello = Some(hello.clone());
        }
        out.push(Action::Describe { hello });
    }

    fn check_described(&self, event: &'static str) -> Result<()> {
        let asked = self.session.as_ref().is_some_and(|session| session.hello.is_some());
        if self.phase == Phase::Greeting && asked {
            Ok(())
        } else {
            Err(self.illegal(event, "no description was requested"))
        }
    }

    fn described(&mut self, mut ours: Hello, out: &mut Vec<Action>) -> Result<()> {
        self.check_described("described")?;
        let Some(hello) = self.session.as_ref().and_then(|session| session.hello.clone()) else {
            return Ok(());
        };
        ours.protocol = PROTOCOL;
        ours.term = hello.term;
        ours.session = hello.session;
        ours.options = hello.options;
        let number = ours.standby_session;
        if let Some(lack) = self.lack.as_ref().filter(|lack| lack.blocks) {
            let why = format!("it could not continue the guest: {}", lack.reason);
            self.break_off(why, out);
            return Ok(());
        }
        if let Err(refusal) = handshake::compare(&hello, &ours) {
            self.break_off(refusal.to_string(), out);
            return Ok(());
        }
        if let Some(why) = self.disks_begin() {
            self.break_off(why, out);
            return Ok(());
        }
        self.term = hello.term;
        self.leader = hello.arbiter.exists().then(|| hello.holder.clone());
        if let Some(session) = &mut self.session {
            let slack = self.options.staging_slack;
            let images = handshake::total_size(&handshake::images_to_send(&hello, &ours));
            session.staging = Staging::new(hello.layout.clone(), images, slack, number);
            session.number = Some(number);
        }
        self.phase = Phase::Filling;
        self.reason = None;
        self.send(Message::Welcome(Box::new(ours)), out);
        if self.lack.is_some() {
            self.say_readiness(out);
        }
        out.push(Action::Report(Report::Filling { term: hello.term, release: hello.release }));
        Ok(())
    }

    // ---- what the primary says ----

    fn check_not_checking(&self, frame: &Frame) -> Result<()> {
        let checking = self.session.as_ref().is_some_and(|session| session.checking.is_some());
        let data = matches!(
            frame.message,
            Message::Image(_)
                | Message::Bulk(_)
                | Message::Pages(_)
                | Message::State(_)
                | Message::End(_)
        );
        if checking && data {
            return Err(self.illegal("frame", "a Check is answered before more data is passed in"));
        }
        Ok(())
    }

    /// Bytes of a frame have arrived: the primary is alive, and this side shows that it is too.
    fn progress(&mut self, now: Time, out: &mut Vec<Action>) {
        let interval = self.options.heartbeat_interval;
        let Some(session) = &mut self.session else { return };
        session.heard = now;
        if session.beat + interval <= now {
            session.beat = now;
            out.extend(self.sign_of_life(now).map(|(link, frame)| Action::Send { link, frame }));
        }
    }

    /// The heartbeat to send while the driver is busy with an action for longer than the heartbeat
    /// interval and passes no events. `None` outside a session that a primary relies on.
    pub fn sign_of_life(&mut self, now: Time) -> Option<(LinkId, Outgoing)> {
        if !matches!(self.phase, Phase::Filling | Phase::Ready | Phase::Doubting) {
            return None;
        }
        let session = self.session.as_mut()?;
        let term = session.hello.as_ref()?.term;
        session.beats += 1;
        let message = Message::Heartbeat(Heartbeat { sequence: session.beats, sent: now.0 });
        Some((session.link, Outgoing { epoch: Epoch(0), term, message }))
    }

    fn frame(&mut self, now: Time, frame: Frame, out: &mut Vec<Action>) {
        let Frame { header, message } = frame;
        let kind = message.kind().name();
        if let Message::Refuse { reason } = message {
            return self.lose(format!("the primary does not go on: {reason}"), out);
        }
        let Some(session) = &mut self.session else { return };
        let expected = session.hello.as_ref().map(|hello| hello.term);
        if let Some(expected) = expected.filter(|term| *term != header.term) {
            let found = header.term;
            let why = format!(
                "expected a message of term {expected} from the primary, found one of term {found}"
            );
            return self.break_off(why, out);
        }
        if !matches!(message, Message::Heartbeat(_)) || !deliberate!(DeafToHeartbeats) {
            session.heard = now;
        }
        let greeted = expected.is_some();
        match (self.phase, message) {
            (
                Phase::Greeting | Phase::WaitingForOperator | Phase::Doubting,
                Message::Hello(hello),
            ) if !greeted && hello.term == header.term => {
                self.hello(hello, out);
            }
            (
                Phase::Greeting | Phase::Filling | Phase::Ready,
                Message::Bye { reason, session, from, .. },
            ) => {
                self.bye(reason, (session, from), out);
            }
            (Phase::Filling | Phase::Ready, Message::Heartbeat(beat)) => {
                self.send(Message::HeartbeatReply(beat), out);
            }
            (Phase::Filling | Phase::Ready, Message::HeartbeatReply(_)) => {}
            (Phase::Doubting, Message::Heartbeat(beat)) => {
                self.send(Message::HeartbeatReply(beat), out);
            }
            // The arbiter was asked on the operator's request: it is too late to receive data or to
            // give up the checkpoint.
            (Phase::Doubting, _) => {}
            (Phase::Filling | Phase::Ready, message) => {
                self.progress(now, out);
                let Some(session) = &mut self.session else { return };
                let last = self.holding.as_ref().map(|holding| holding.epoch);
                match session.staging.take(last, &header, message) {
                    Ok(staging::Step::Staged) => {}
                    Ok(staging::Step::Bulk(pages)) => out.push(Action::ApplyBulk(pages)),
                    Ok(staging::Step::Images(bytes)) => out.push(Action::StoreImages(bytes)),
                    Ok(staging::Step::Whole(checkpoint)) => {
                        let checkpoint = Arc::new(checkpoint);
                        session.checking = Some(checkpoint.clone());
                        if deliberate!(AckBeforeCheck) {
                            let frame = Outgoing {
                                epoch: header.epoch,
                                term: header.term,
                                message: Message::Ack,
                            };
                            out.push(Action::Send { link: session.link, frame });
                        }
                        out.push(Action::Check(checkpoint));
                    }
                    Err(error) => self.break_off(format!("{kind}: {error}"), out),
                }
            }
            _ => {
                let why = format!("the primary sent {kind} in state {}", self.phase.name());
                self.break_off(why, out);
            }
        }
    }

    fn checking(&self, event: &'static str, epoch: Epoch) -> Result<Arc<Checkpoint>> {
        let checking = self.session.as_ref().and_then(|session| session.checking.clone());
        checking
            .filter(|checkpoint| checkpoint.epoch() == epoch)
            .ok_or_else(|| self.illegal(event, "this checkpoint is not under check"))
    }

    /// P4: acknowledges a checkpoint that came whole, was verified, and can be applied. No other
    /// checkpoint is ever applied.
    fn applicable(&mut self, epoch: Epoch, out: &mut Vec<Action>) -> Result<()> {
        let checkpoint = self.checking("applicable", epoch)?;
        debug_assert!(matches!(self.phase, Phase::Filling | Phase::Ready), "{:?}", self.phase);
        let Some(session) = &mut self.session else { return Ok(()) };
        let Some(hello) = &session.hello else { return Ok(()) };
        let (name, term, link) = (hello.name.clone(), hello.term, session.link);
        session.checking = None;
        session.to_verify = checkpoint.hashes().map(|hashes| (epoch, hashes));
        if self.phase == Phase::Filling {
            self.phase = Phase::Ready;
            out.push(Action::Report(Report::Ready { epoch }));
        }
        self.holding = Some(Holding { name, term, epoch });
        let frame = Outgoing { epoch, term, message: Message::Ack };
        if !deliberate!(AckBeforeCheck) {
            out.push(Action::Send { link, frame });
        }
        out.push(Action::Apply(checkpoint));
        Ok(())
    }

    fn hashed(&mut self, epoch: Epoch, standby: Hashes, out: &mut Vec<Action>) -> Result<()> {
        let awaited = self.session.as_ref().and_then(|session| session.to_verify);
        let Some((_, primary)) = awaited.filter(|(awaited, _)| *awaited == epoch) else {
            return Err(self.illegal("hashed", "no hashes of this epoch are awaited"));
        };
        let verified = Verified { agree: primary == standby, primary, standby };
        if let Some(session) = &mut self.session {
            session.to_verify = None;
            let message = Message::Verified(verified);
            let frame = Outgoing { epoch, term: self.term, message };
            out.push(Action::Send { link: session.link, frame });
        }
        out.push(Action::Report(Report::Verified { epoch, verified }));
        if !verified.agree {
            // P8: the held checkpoint differs from the guest.
            self.give_up(
                format!(
                    "epoch {epoch} is not the same on both sides: primary {primary}, standby {standby}"
                ),
                out,
            );
        }
        Ok(())
    }

    /// P8: a checkpoint whose hashes cannot be compared may differ.
    fn cannot_hash(&mut self, epoch: Epoch, reason: &str, out: &mut Vec<Action>) -> Result<()> {
        let awaited = self.session.as_ref().and_then(|session| session.to_verify);
        if awaited.is_none_or(|(awaited, _)| awaited != epoch) {
            return Err(self.illegal("cannot hash", "no hashes of this epoch are awaited"));
        }
        self.give_up(format!("epoch {epoch} cannot be compared: {reason}"), out);
        Ok(())
    }

    /// P2, P4: a side that cannot continue must not win the term. If the primary is gone too, the
    /// guest is lost in any case; if it is alive, it continues.
    fn cannot_go_on(&mut self, reason: &str, out: &mut Vec<Action>) -> Result<()> {
        let reason = format!("this side could not continue from its checkpoint: {reason}");
        if self.phase == Phase::WaitingForOperator {
            // No other machine may have the guest: the operator must find out what to do.
            self.reason = Some(reason.clone());
            out.push(Action::Report(Report::WaitingForOperator { reason }));
            return Ok(());
        }
        self.check_answer("cannot go on", None)?;
        self.asking = None;
        self.give_up(reason, out);
        Ok(())
    }

    /// P9: a side that wins the term but cannot continue now leaves the guest stopped meanwhile,
    /// and takes the right from a primary that may be alive. If there is a primary, as in an
    /// operator's move, it simply continues. Otherwise the checkpoint is kept and the takeover is
    /// tried again.
    fn not_ready(&mut self, now: Time, reason: &str, out: &mut Vec<Action>) -> Result<()> {
        self.check_answer("not ready", None)?;
        if self.session.is_some() {
            self.asking = None;
            self.give_up(format!("this side cannot take over: {reason}"), out);
            return Ok(());
        }
        if let Some(asking) = &mut self.asking {
            asking.not_ready = true;
            asking.failures += 1;
            asking.retry = Some(now + self.options.arbiter_retry.after(asking.failures));
            if deliberate!(NotReadyOnce) {
                asking.retry = None;
            }
            self.reason = Some(format!("{reason} ({})", asking.why));
        }
        out.push(Action::Report(Report::WillNotTakeOver { reason: reason.to_string() }));
        Ok(())
    }

    /// Gives up the held checkpoint: the primary is told, and continues at once.
    fn give_up(&mut self, why: String, out: &mut Vec<Action>) {
        self.say_bye(ByeReason::Detached, why.clone(), out);
        self.close(&why, out);
        out.push(Action::Report(Report::GaveUp { reason: why.clone() }));
        self.discard(why, out);
        self.phase = Phase::Waiting;
    }

    fn bye(&mut self, reason: ByeReason, (said, from): (u64, u64), out: &mut Vec<Action>) {
        let (session, theirs) = (self.number(), self.theirs());
        if said == 0 && deliberate!(ByeOfNobody) {
            self.close("", out);
            self.discard(String::new(), out);
            self.phase = Phase::Waiting;
            return;
        }
        if said == 0 {
            return self.lose("the primary disconnected before the answer".to_string(), out);
        }
        // A Bye of another session does not give up the checkpoint (P4).
        if session != said || theirs != from {
            let why = format!(
                "the primary ends session {said:#x} as {from:#x}, expected session {session:#x} with {theirs:#x}"
            );
            return self.break_off(why, out);
        }
        let why = match reason {
            ByeReason::PoweredOff => "the guest has powered off",
            ByeReason::Stopped => "the primary was stopped by its operator",
            ByeReason::Detach => "the primary runs alone, as its operator decided",
            ByeReason::Detached => {
                let why = "the primary sent a standby's Bye".to_string();
                return self.break_off(why, out);
            }
        };
        if reason == ByeReason::Detach {
            // After this Bye the primary continues at once: the checkpoint must never be used.
            self.say_bye(ByeReason::Detached, String::new(), out);
            if deliberate!(RenounceAndKeep) && self.phase == Phase::Ready {
                self.close(why, out);
                return self.doubt(why.to_string(), out);
            }
            self.close(why, out);
            self.discard(why.to_string(), out);
            self.phase = Phase::Waiting;
        } else {
            self.stop(why.to_string(), out);
        }
    }

    // ---- the link is lost ----

    fn garbled(&mut self, error: &WireError, out: &mut Vec<Action>) {
        self.break_off(format!("from the primary: {error}"), out);
    }

    /// Tells the primary why, and continues as if the link was lost.
    fn break_off(&mut self, why: String, out: &mut Vec<Action>) {
        self.send(Message::Refuse { reason: why.clone() }, out);
        self.lose(why, out);
    }

    fn lose(&mut self, why: String, out: &mut Vec<Action>) {
        self.close(&why, out);
        out.push(Action::Report(Report::LinkLost { reason: why.clone() }));
        match self.phase {
            Phase::Ready if self.may_take_over() => self.doubt(why, out),
            Phase::Ready | Phase::Filling => {
                self.discard(why, out);
                self.phase = Phase::Waiting;
            }
            Phase::Greeting => {
                self.reason = Some(why);
                self.phase = Phase::Waiting;
            }
            // A primary that could not join changes nothing while this side waits, nor does a lost
            // link after the arbiter was asked.
            _ => {}
        }
    }

    fn doubt(&mut self, why: String, out: &mut Vec<Action>) {
        self.reason = Some(why.clone());
        if self.options.arbiter && deliberate!(TakeOverWithoutArbiter) {
            return self.take_over(out);
        }
        if self.options.arbiter {
            self.phase = Phase::Doubting;
            let lack = self.lack.as_ref().filter(|lack| lack.blocks);
            let held = lack.is_some();
            if let Some(Lack { reason, .. }) = lack {
                out.push(Action::Report(Report::WillNotTakeOver { reason: reason.clone() }));
            }
            self.asking =
                Some(Asking { why: why.clone(), failures: 0, retry: None, held, not_ready: false });
            if !held {
                self.ask(why, out);
            }
        } else {
            self.phase = Phase::WaitingForOperator;
            out.push(Action::Report(Report::WaitingForOperator { reason: why }));
        }
    }

    /// P7: reports what this side lacks, to its primary too: neither may report that the guest is
    /// protected.
    fn resources(&mut self, lack: Option<Lack>, out: &mut Vec<Action>) {
        if self.lack == lack {
            return;
        }
        out.push(Action::Report(match &lack {
            Some(lack) => Report::Degraded { reason: lack.reason.clone() },
            None => Report::Whole,
        }));
        self.lack = lack;
        if matches!(self.phase, Phase::Filling | Phase::Ready) {
            self.say_readiness(out);
        }
        let blocked = self.lack.as_ref().is_some_and(|lack| lack.blocks);
        if let Some(asking) = self.asking.as_mut().filter(|asking| asking.held && !blocked) {
            asking.held = false;
            if deliberate!(HeldForGood) {
                return;
            }
            let why = asking.why.clone();
            // A primary that is joining meanwhile connects again.
            self.close("this side asks whether it may take over", out);
            self.ask(why, out);
        }
    }

    fn say_readiness(&self, out: &mut Vec<Action>) {
        let (session, from) = (self.theirs(), self.number());
        let lack = self.lack.as_ref().map(|lack| lack.reason.clone());
        self.send(Message::Readiness { lack, session, from }, out);
    }

    /// This side's number for the session; 0 before it was sent.
    fn number(&self) -> u64 {
        self.session.as_ref().and_then(|session| session.number).unwrap_or(0)
    }

    /// The primary's number for the session; 0 before it has sent it.
    fn theirs(&self) -> u64 {
        let hello = self.session.as_ref().and_then(|session| session.hello.as_ref());
        hello.map_or(0, |hello| hello.session)
    }

    /// Claims the term after the checkpoint's term, and never a later one: the winner of that term
    /// has continued with or without this checkpoint, which is then stale.
    fn ask(&self, why: String, out: &mut Vec<Action>) {
        if let Some(holding) = &self.holding {
            out.push(Action::AskArbiter { term: holding.term.next(), why });
        }
    }

    fn close(&mut self, reason: &str, out: &mut Vec<Action>) {
        if let Some(session) = self.session.take() {
            out.push(Action::CloseLink { link: session.link, reason: reason.to_string() });
        }
    }

    fn discard(&mut self, reason: String, out: &mut Vec<Action>) {
        self.holding = None;
        self.reason = Some(reason.clone());
        out.push(Action::Discard { reason });
    }

    fn stop(&mut self, reason: String, out: &mut Vec<Action>) {
        self.close(&reason, out);
        self.phase = Phase::Stopped;
        self.holding = None;
        self.asking = None;
        self.reason = Some(reason.clone());
        out.push(Action::Stop { reason });
    }

    fn tick(&mut self, now: Time, out: &mut Vec<Action>) {
        if deliberate!(GreetsForEver) && self.phase == Phase::Greeting {
            return;
        }
        let patience = self.patience();
        let silent = |session: &Session| now.since(session.heard) > patience;
        if self.session.as_ref().is_some_and(silent) && !deliberate!(SilentPrimary) {
            self.lose(format!("no message from the primary for {patience:?}"), out);
        }
        if let Some(asking) = &mut self.asking
            && asking.retry.is_some_and(|time| time <= now)
        {
            asking.retry = None;
            let why = asking.why.clone();
            if core::mem::take(&mut asking.not_ready) {
                // A primary that is joining meanwhile connects again. Until the arbiter answers, no
                // primary is let in (P2).
                self.close("this side asks whether it may take over", out);
            }
            self.ask(why, out);
        }
    }

    // ---- the arbiter and the operator ----

    fn check_answer(&self, event: &'static str, term: Option<Term>) -> Result<()> {
        let awaited =
            self.asking.as_ref().is_some_and(|asking| asking.retry.is_none() && !asking.held);
        let asked = self.holding.as_ref().map(|holding| holding.term.next());
        if !awaited || term.is_some_and(|term| Some(term) != asked) {
            return Err(self.illegal(event, "the arbiter was not asked for this term"));
        }
        Ok(())
    }

    fn granted(&mut self, term: Term, out: &mut Vec<Action>) -> Result<()> {
        self.check_answer("arbiter: granted", Some(term))?;
        if let Some(why) = self.won_too_late() {
            self.stop(why, out);
            return Ok(());
        }
        // Restore the original reason: the arbiter's failures no longer matter.
        self.reason = self.asking.as_ref().map(|asking| asking.why.clone());
        self.take_over(out);
        Ok(())
    }

    fn take_over(&mut self, out: &mut Vec<Action>) {
        let Some(holding) = &self.holding else { return };
        let (term, epoch) = (holding.term.next(), holding.epoch);
        let term = if deliberate!(ReuseTerm) { holding.term } else { term };
        self.close("taking over", out);
        self.phase = Phase::Active;
        self.term = term;
        let reason = self.reason.clone().unwrap_or_default();
        out.push(Action::TakeOver { taken: TakenOver::new(term, epoch), reason });
    }

    fn denied(&mut self, term: Term, holder: &str, out: &mut Vec<Action>) -> Result<()> {
        self.check_answer("arbiter: denied", Some(term))?;
        if deliberate!(DeniedIsGranted) {
            self.take_over(out);
            return Ok(());
        }
        self.asking = None;
        if !deliberate!(DeniedForgetsTerm) {
            (self.term, self.leader) = (term, None);
        }
        self.close("another side holds the next term", out);
        self.discard(format!("term {term} is held by {holder}"), out);
        self.phase = Phase::Waiting;
        Ok(())
    }

    fn unreachable(&mut self, now: Time, reason: String, out: &mut Vec<Action>) -> Result<()> {
        self.check_answer("arbiter: unreachable", None)?;
        if deliberate!(UnreachableIsGranted) {
            self.take_over(out);
            return Ok(());
        }
        if let Some(asking) = &mut self.asking {
            asking.failures += 1;
            asking.retry = Some(now + self.options.arbiter_retry.after(asking.failures));
            self.reason = Some(format!("{}; the arbiter is unreachable: {reason}", asking.why));
        }
        out.push(Action::Report(Report::ArbiterUnreachable { reason }));
        Ok(())
    }

    fn operator_take_over(&mut self, out: &mut Vec<Action>) -> Result<()> {
        match self.phase {
            Phase::Ready if !self.may_take_over() => Err(self.illegal(
                "operator: take over",
                "a standby whose disks are in the set: its status says how far they are",
            )),
            Phase::Ready | Phase::WaitingForOperator
                if self.lack.as_ref().is_some_and(|lack| lack.blocks) =>
            {
                Err(self.illegal(
                    "operator: take over",
                    "a standby that has all that the guest needs: its status names what is missing",
                ))
            }
            Phase::WaitingForOperator => {
                self.take_over(out);
                Ok(())
            }
            // A planned move: the arbiter makes the primary stop, as it would after a failure. The
            // link stays up, so that the primary does not ask at the same time. From now on nothing
            // is acknowledged: what is held when the term is won must be the last checkpoint.
            Phase::Ready if self.options.arbiter => {
                if let Some(session) = &mut self.session {
                    session.checking = None;
                    session.to_verify = None;
                }
                self.doubt("the operator has ordered a takeover".to_string(), out);
                Ok(())
            }
            Phase::Doubting => Err(self.illegal(
                "operator: take over",
                "no takeover in progress: this side has already asked the arbiter for the next term",
            )),
            _ => Err(self.illegal(
                "operator: take over",
                "only a standby with a checkpoint takes over; without an arbiter, only when the primary is out of \
                 reach",
            )),
        }
    }

    fn operator_discard(&mut self, out: &mut Vec<Action>) -> Result<()> {
        if self.phase != Phase::WaitingForOperator {
            return Err(self.illegal("operator: discard", "no checkpoint waits for an operator"));
        }
        self.close("the operator discards the checkpoint", out);
        self.discard("the operator has discarded the checkpoint".to_string(), out);
        self.phase = Phase::Waiting;
        Ok(())
    }

    /// Before the primary has named its session, there is no session to leave: the number is then
    /// 0.
    fn say_bye(&self, reason: ByeReason, why: String, out: &mut Vec<Action>) {
        let (session, from) = (self.theirs(), self.number());
        self.send(Message::Bye { reason, session, from, why }, out);
    }

    fn send(&self, message: Message, out: &mut Vec<Action>) {
        if let Some(session) = &self.session {
            // Before the primary has sent its term, it does not check ours.
            let term = session.hello.as_ref().map_or(self.term, |hello| hello.term);
            let frame = Outgoing { epoch: Epoch(0), term, message };
            out.push(Action::Send { link: session.link, frame });
        }
    }
}
