//! A machine that makes no progress (P7).

use alloc::string::String;
use alloc::vec::Vec;

use super::{Action, Primary, Report};
use crate::{Time, deliberate};

impl Primary {
    /// P7: tells the standby, which asks the arbiter. This side asks only later, since the guest is
    /// better off on the standby.
    pub(super) fn stall(&mut self, now: Time, reason: String, out: &mut Vec<Action>) {
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

    pub(super) fn recover(&mut self, now: Time, out: &mut Vec<Action>) {
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
}
