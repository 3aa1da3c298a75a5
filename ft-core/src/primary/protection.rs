//! What a standby's checkpoint is worth, and how the primary gives it up.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use io_gate::host::Epoch;

use super::{Action, Phase, Primary, Report};
use crate::wire::ByeReason;
use crate::{Time, deliberate};

impl Primary {
    pub(super) fn protected(&mut self, epoch: Epoch, out: &mut Vec<Action>) {
        self.phase = Phase::Protected;
        self.search_failures = 0;
        self.report_protection(epoch, out);
    }

    /// A replayed message of an earlier session says nothing about this one.
    pub(super) fn readiness(
        &mut self,
        lack: Option<String>,
        said: (u64, u64),
        out: &mut Vec<Action>,
    ) {
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

    /// P8: the standby's machine differs from this one. It says Bye by itself; otherwise it is
    /// asked to.
    pub(super) fn distrust(&mut self, now: Time, out: &mut Vec<Action>) {
        if matches!(self.phase, Phase::Arming | Phase::Protected) {
            self.detach(now, out);
            self.reason =
                Some("the standby's memory or state differs from this side's".to_string());
        }
    }

    pub(super) fn detach(&mut self, now: Time, out: &mut Vec<Action>) {
        self.say_bye(ByeReason::Detach, out);
        self.phase = Phase::Detaching;
        if let Some(session) = &mut self.session {
            session.detach_by =
                (!deliberate!(DetachForEver)).then(|| now + self.options.setup_timeout);
        }
    }
}
