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

mod authority;
mod disks;
mod doubt;
mod endings;
mod frames;
mod io;
mod joining;
mod loss;
mod operator;
mod options;
mod phase;
mod protection;
mod search;
mod session;
mod stall;
#[cfg(test)]
mod tests;
mod timers;

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use io_gate::host::{CommitAuthority, DurableCommitAuthority, Epoch, Term};

pub use io::{Action, Event, Report};
pub use options::{MAX_IN_FLIGHT, PrimaryOptions};
pub use phase::Phase;

use crate::disks::{FlushMode, Holds, Seq};
use crate::standby::TakenOver;
use crate::wire::ByeReason;
use crate::{Illegal, LinkId, Time, deliberate};
use authority::Authority;
use doubt::Asking;
use session::StandbySession;

/// See the module.
#[derive(Debug)]
pub struct Primary {
    authority: Authority,
    options: PrimaryOptions,
    term: Term,
    phase: Phase,
    session: Option<StandbySession>,
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
        Self::start(Authority::Acknowledged(authority), options, term, (None, None), now)
    }

    /// As [`begin`](Self::begin), for a machine with own disks.
    #[must_use]
    pub fn begin_with_disks(
        authority: DurableCommitAuthority,
        options: PrimaryOptions,
        term: Term,
        mode: FlushMode,
        now: Time,
    ) -> (Self, Vec<Action>) {
        let disks = Holds::new(mode);
        Self::start(Authority::Durable(authority), options, term, (None, Some(disks)), now)
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
        Self::start(Authority::Acknowledged(authority), options, term, (Some(epoch), None), now)
    }

    /// As [`after_takeover`](Self::after_takeover), for a machine with own disks. R4: its outputs
    /// are held until this side's images are durable up to `flushed`, the last flush that the guest
    /// has seen complete in the checkpoint. The former primary may have told of it.
    #[must_use]
    pub fn after_takeover_with_disks(
        authority: DurableCommitAuthority,
        options: PrimaryOptions,
        taken: TakenOver,
        (mode, flushed): (FlushMode, Seq),
        now: Time,
    ) -> (Self, Vec<Action>) {
        let (term, epoch) = (taken.term(), taken.epoch());
        let disks = Holds::after_takeover(mode, flushed);
        Self::start(Authority::Durable(authority), options, term, (Some(epoch), Some(disks)), now)
    }

    fn start(
        mut authority: Authority,
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
}
