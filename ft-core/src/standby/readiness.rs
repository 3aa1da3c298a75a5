//! What this side lacks for continuing the guest (P7).

use alloc::vec::Vec;

use super::{Action, Lack, Phase, Report, Standby};
use crate::deliberate;

impl Standby {
    /// P7: reports what this side lacks, to its primary too: neither may report that the guest is
    /// protected.
    pub(super) fn resources(&mut self, lack: Option<Lack>, out: &mut Vec<Action>) {
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
}
