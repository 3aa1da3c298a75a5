//! The deadlines of the standby, and what it does at each.

use alloc::format;
use alloc::vec::Vec;

use super::{Action, Phase, PrimarySession, Standby};
use crate::{Time, deliberate};

impl Standby {
    /// When the next [`Event::Tick`] is due. An earlier tick does no harm. The driver must pass
    /// received frames first.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        let session = self.session.as_ref().map(|session| session.heard + self.patience());
        let retry = self.asking.as_ref().and_then(|asking| asking.retry);
        [session, retry].into_iter().flatten().min()
    }

    pub(super) fn tick(&mut self, now: Time, out: &mut Vec<Action>) {
        if deliberate!(GreetsForEver) && self.phase == Phase::Greeting {
            return;
        }
        let patience = self.patience();
        let silent = |session: &PrimarySession| now.since(session.heard) > patience;
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
}
