//! The loss of a session, which ends without a Bye from the standby.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Action, Phase, Primary, Report};
use crate::wire::WireError;
use crate::{Time, deliberate};

impl Primary {
    /// Tells the standby why, and continues as if the link was lost.
    pub(super) fn break_off(&mut self, now: Time, why: String, out: &mut Vec<Action>) {
        self.refuse_further(&why, out);
        self.lose(now, why, out);
    }

    pub(super) fn lose(&mut self, now: Time, why: String, out: &mut Vec<Action>) {
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

    pub(super) fn lose_silent(&mut self, now: Time, out: &mut Vec<Action>) {
        let patience = self.patience();
        self.lose(now, format!("no message from the standby for {patience:?}"), out);
    }

    pub(super) fn garbled(&mut self, now: Time, error: &WireError, out: &mut Vec<Action>) {
        self.lose(now, format!("from the standby: {error}"), out);
    }

    pub(super) fn unfit(&mut self, now: Time, reason: String, out: &mut Vec<Action>) {
        // It will probably not fit soon.
        self.search_rarely();
        self.break_off(now, reason, out);
    }
}
