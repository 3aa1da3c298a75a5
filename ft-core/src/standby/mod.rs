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

mod checkpoints;
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
mod readiness;
mod session;
mod staging;
#[cfg(test)]
mod tests;
mod timers;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use io_gate::host::{Epoch, Term};

pub use io::{Action, Event, Lack, Report, TakenOver};
pub use options::StandbyOptions;
pub use phase::Phase;
pub use staging::{CheckedPages, Checkpoint};

use crate::disks::Standing;
use crate::wire::ByeReason;
use crate::{Illegal, Time};
use doubt::Asking;
use session::PrimarySession;
use staging::Staging;

/// The held checkpoint, and the machine and the term that it belongs to.
#[derive(Clone, Debug)]
struct Holding {
    name: String,
    /// The primary's term.
    term: Term,
    /// The last checkpoint acknowledged.
    epoch: Epoch,
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
    session: Option<PrimarySession>,
    holding: Option<Holding>,
    asking: Option<Asking>,
    /// What this side lacks to continue the guest.
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
}
