//! The ends of a session, of a checkpoint, and of the standby.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::{Action, Phase, Report, Standby};
use crate::wire::ByeReason;

impl Standby {
    pub(super) fn close(&mut self, reason: &str, out: &mut Vec<Action>) {
        if let Some(session) = self.session.take() {
            out.push(Action::CloseLink { link: session.link, reason: reason.to_string() });
        }
    }

    pub(super) fn discard(&mut self, reason: String, out: &mut Vec<Action>) {
        self.holding = None;
        self.reason = Some(reason.clone());
        out.push(Action::Discard { reason });
    }

    pub(super) fn stop(&mut self, reason: String, out: &mut Vec<Action>) {
        self.close(&reason, out);
        self.phase = Phase::Stopped;
        self.holding = None;
        self.asking = None;
        self.reason = Some(reason.clone());
        out.push(Action::Stop { reason });
    }

    /// Gives up the held checkpoint: the primary is told, and continues at once.
    pub(super) fn give_up(&mut self, why: String, out: &mut Vec<Action>) {
        self.say_bye(ByeReason::Detached, why.clone(), out);
        self.close(&why, out);
        out.push(Action::Report(Report::GaveUp { reason: why.clone() }));
        self.discard(why, out);
        self.phase = Phase::Waiting;
    }
}
