//! The ends of a session, and the end of the machine.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::{Action, Phase, Primary};
use crate::wire::ByeReason;
use crate::{Time, deliberate};

impl Primary {
    pub(super) fn close(&mut self, reason: String, out: &mut Vec<Action>) {
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

    pub(super) fn go_alone(&mut self, now: Time, held: bool, why: String, out: &mut Vec<Action>) {
        self.phase = Phase::Alone;
        self.asking = None;
        self.reason = Some(why);
        self.search_later(now);
        if held && !deliberate!(ForgetRunAlone) {
            out.push(Action::RunAlone(self.authority.alone(self.term)));
        }
    }

    /// Leaves a standby that was not sent a checkpoint: no question to the arbiter is needed.
    pub(super) fn leave_standby(&mut self, now: Time, why: &str, out: &mut Vec<Action>) {
        self.say_bye(ByeReason::Detach, out);
        let held = self.phase == Phase::Sealing && !deliberate!(StaysHeldForOperator);
        self.close(why.to_string(), out);
        self.go_alone(now, held, why.to_string(), out);
    }

    pub(super) fn leave(&mut self, bye: ByeReason, reason: String, out: &mut Vec<Action>) {
        self.say_bye(bye, out);
        self.stop(reason, false, out);
    }

    pub(super) fn fence(&mut self, reason: String, out: &mut Vec<Action>) {
        out.push(Action::Hold);
        self.stop(reason, true, out);
    }

    pub(super) fn stop(&mut self, reason: String, fenced: bool, out: &mut Vec<Action>) {
        self.close(reason.clone(), out);
        self.phase = Phase::Stopped;
        self.asking = None;
        self.reason = Some(reason.clone());
        out.push(Action::Stop { reason, fenced });
    }
}
