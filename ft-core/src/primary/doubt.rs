//! The standby is unreachable: the arbiter or the operator decides (P2).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use io_gate::host::Term;

use super::{Action, Phase, Primary, Report, Result};
use crate::{Time, deliberate};

/// A question to the arbiter.
#[derive(Debug)]
pub(super) struct Asking {
    pub(super) why: String,
    pub(super) failures: u32,
    /// When to ask again; `None` while an answer is awaited.
    pub(super) retry: Option<Time>,
    /// Do not ask before: until then the standby of a stuck machine has its turn (P7).
    pub(super) not_before: Time,
}

impl Primary {
    pub(super) fn doubt(&mut self, now: Time, why: String, out: &mut Vec<Action>) {
        self.reason = Some(why.clone());
        if self.options.arbiter && deliberate!(AloneWithoutArbiter) {
            self.term = self.term.next();
            self.phase = Phase::Alone;
            return out.push(Action::RunAlone(self.authority.alone(self.term)));
        }
        if self.options.arbiter {
            self.phase = Phase::Doubting;
            if self.stalled.is_some() {
                // It is the standby's turn. If the standby is gone too, this machine asks later,
                // and learns then whether it still has the right.
                let not_before = now + self.options.setup_timeout;
                self.asking =
                    Some(Asking { why, failures: 0, retry: Some(not_before), not_before });
                return;
            }
            out.push(Action::AskArbiter { term: self.term.next(), why: why.clone() });
            self.asking = Some(Asking { why, failures: 0, retry: None, not_before: now });
        } else {
            self.phase = Phase::WaitingForOperator;
            out.push(Action::Report(Report::WaitingForOperator { reason: why }));
        }
    }

    fn check_answer(&self, event: &'static str, term: Option<Term>) -> Result<()> {
        let awaited = self.asking.as_ref().is_some_and(|asking| asking.retry.is_none());
        if !awaited || term.is_some_and(|term| term != self.term.next()) {
            return Err(self.illegal_named(event, "the arbiter was not asked for this term"));
        }
        Ok(())
    }

    pub(super) fn granted(&mut self, now: Time, term: Term, out: &mut Vec<Action>) -> Result<()> {
        self.check_answer("arbiter: granted", Some(term))?;
        // Restore the original reason: the arbiter's failures no longer matter.
        if !deliberate!(ReasonOfArbiter) {
            self.reason = self.asking.as_ref().map(|asking| asking.why.clone());
        }
        self.win(now, out);
        Ok(())
    }

    /// This machine has won the next term: no standby of the old term can take over any more.
    pub(super) fn win(&mut self, now: Time, out: &mut Vec<Action>) {
        if !deliberate!(ReuseTerm) {
            self.term = self.term.next();
        }
        let why = self.reason.take().unwrap_or_default();
        out.push(Action::Report(Report::RunsAlone { term: self.term, reason: why.clone() }));
        self.go_alone(now, true, why, out);
    }

    pub(super) fn denied(&mut self, term: Term, holder: &str, out: &mut Vec<Action>) -> Result<()> {
        self.check_answer("arbiter: denied", Some(term))?;
        if deliberate!(IgnoreFence) {
            return Ok(());
        }
        self.fence(format!("term {term} is held by {holder}"), out);
        Ok(())
    }

    pub(super) fn unreachable(
        &mut self,
        now: Time,
        reason: String,
        out: &mut Vec<Action>,
    ) -> Result<()> {
        self.check_answer("arbiter: unreachable", None)?;
        if let Some(asking) = &mut self.asking {
            asking.failures += 1;
            if !deliberate!(AskOnce) {
                let again = now + self.options.arbiter_retry.after(asking.failures);
                asking.retry = Some(again.max(asking.not_before));
            }
            self.reason = Some(format!("{}; the arbiter is unreachable: {reason}", asking.why));
        }
        out.push(Action::Report(Report::ArbiterUnreachable { reason }));
        Ok(())
    }
}
