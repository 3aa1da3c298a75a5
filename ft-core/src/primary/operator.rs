//! The operator's orders.

use alloc::vec::Vec;

use super::{Action, Phase, Primary, Result};
use crate::Time;

impl Primary {
    pub(super) fn protect(&mut self, now: Time, out: &mut Vec<Action>) -> Result<()> {
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

    pub(super) fn operator_alone(&mut self, now: Time, out: &mut Vec<Action>) -> Result<()> {
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
}
