//! The primary is unreachable: the arbiter or the operator decides (P2).

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use io_gate::host::Term;

use super::{Action, Lack, Phase, Report, Result, Standby, TakenOver};
use crate::{Time, deliberate};

/// A question to the arbiter.
#[derive(Debug)]
pub(super) struct Asking {
    pub(super) why: String,
    pub(super) failures: u32,
    /// When to ask again; `None` while an answer is awaited.
    pub(super) retry: Option<Time>,
    /// The arbiter is not asked at all: this side lacks something that the guest cannot run
    /// without.
    pub(super) held: bool,
    /// When the arbiter was last to be asked, this side could not have continued; this has not been
    /// tried again since.
    pub(super) not_ready: bool,
}

impl Standby {
    pub(super) fn doubt(&mut self, why: String, out: &mut Vec<Action>) {
        self.reason = Some(why.clone());
        if self.options.arbiter && deliberate!(TakeOverWithoutArbiter) {
            return self.take_over(out);
        }
        if self.options.arbiter {
            self.phase = Phase::Doubting;
            let lack = self.lack.as_ref().filter(|lack| lack.blocks);
            let held = lack.is_some();
            if let Some(Lack { reason, .. }) = lack {
                out.push(Action::Report(Report::WillNotTakeOver { reason: reason.clone() }));
            }
            self.asking =
                Some(Asking { why: why.clone(), failures: 0, retry: None, held, not_ready: false });
            if !held {
                self.ask(why, out);
            }
        } else {
            self.phase = Phase::WaitingForOperator;
            out.push(Action::Report(Report::WaitingForOperator { reason: why }));
        }
    }

    /// Claims the term after the checkpoint's term, and never a later one: the winner of that term
    /// has continued with or without this checkpoint, which is then stale.
    pub(super) fn ask(&self, why: String, out: &mut Vec<Action>) {
        if let Some(holding) = &self.holding {
            out.push(Action::AskArbiter { term: holding.term.next(), why });
        }
    }

    fn check_answer(&self, event: &'static str, term: Option<Term>) -> Result<()> {
        let awaited =
            self.asking.as_ref().is_some_and(|asking| asking.retry.is_none() && !asking.held);
        let asked = self.holding.as_ref().map(|holding| holding.term.next());
        if !awaited || term.is_some_and(|term| Some(term) != asked) {
            return Err(self.illegal(event, "the arbiter was not asked for this term"));
        }
        Ok(())
    }

    pub(super) fn granted(&mut self, term: Term, out: &mut Vec<Action>) -> Result<()> {
        self.check_answer("arbiter: granted", Some(term))?;
        if let Some(why) = self.won_too_late() {
            self.stop(why, out);
            return Ok(());
        }
        // Restore the original reason: the arbiter's failures no longer matter.
        self.reason = self.asking.as_ref().map(|asking| asking.why.clone());
        self.take_over(out);
        Ok(())
    }

    pub(super) fn take_over(&mut self, out: &mut Vec<Action>) {
        let Some(holding) = &self.holding else { return };
        let (term, epoch) = (holding.term.next(), holding.epoch);
        let term = if deliberate!(ReuseTerm) { holding.term } else { term };
        self.close("taking over", out);
        self.phase = Phase::Active;
        self.term = term;
        let reason = self.reason.clone().unwrap_or_default();
        out.push(Action::TakeOver { taken: TakenOver::new(term, epoch), reason });
    }

    pub(super) fn denied(&mut self, term: Term, holder: &str, out: &mut Vec<Action>) -> Result<()> {
        self.check_answer("arbiter: denied", Some(term))?;
        if deliberate!(DeniedIsGranted) {
            self.take_over(out);
            return Ok(());
        }
        self.asking = None;
        if !deliberate!(DeniedForgetsTerm) {
            (self.term, self.leader) = (term, None);
        }
        self.close("another side holds the next term", out);
        self.discard(format!("term {term} is held by {holder}"), out);
        self.phase = Phase::Waiting;
        Ok(())
    }

    pub(super) fn unreachable(
        &mut self,
        now: Time,
        reason: String,
        out: &mut Vec<Action>,
    ) -> Result<()> {
        self.check_answer("arbiter: unreachable", None)?;
        if deliberate!(UnreachableIsGranted) {
            self.take_over(out);
            return Ok(());
        }
        if let Some(asking) = &mut self.asking {
            asking.failures += 1;
            asking.retry = Some(now + self.options.arbiter_retry.after(asking.failures));
            self.reason = Some(format!("{}; the arbiter is unreachable: {reason}", asking.why));
        }
        out.push(Action::Report(Report::ArbiterUnreachable { reason }));
        Ok(())
    }

    /// P2, P4: a side that cannot continue must not win the term. If the primary is gone too, the
    /// guest is lost in any case; if it is alive, it continues.
    pub(super) fn cannot_go_on(&mut self, reason: &str, out: &mut Vec<Action>) -> Result<()> {
        let reason = format!("this side could not continue from its checkpoint: {reason}");
        if self.phase == Phase::WaitingForOperator {
            // No other machine may have the guest: the operator must find out what to do.
            self.reason = Some(reason.clone());
            out.push(Action::Report(Report::WaitingForOperator { reason }));
            return Ok(());
        }
        self.check_answer("cannot go on", None)?;
        self.asking = None;
        self.give_up(reason, out);
        Ok(())
    }

    /// P9: a side that wins the term but cannot continue now leaves the guest stopped meanwhile,
    /// and takes the right from a primary that may be alive. If there is a primary, as in an
    /// operator's move, it simply continues. Otherwise the checkpoint is kept and the takeover is
    /// tried again.
    pub(super) fn not_ready(
        &mut self,
        now: Time,
        reason: &str,
        out: &mut Vec<Action>,
    ) -> Result<()> {
        self.check_answer("not ready", None)?;
        if self.session.is_some() {
            self.asking = None;
            self.give_up(format!("this side cannot take over: {reason}"), out);
            return Ok(());
        }
        if let Some(asking) = &mut self.asking {
            asking.not_ready = true;
            asking.failures += 1;
            asking.retry = Some(now + self.options.arbiter_retry.after(asking.failures));
            if deliberate!(NotReadyOnce) {
                asking.retry = None;
            }
            self.reason = Some(format!("{reason} ({})", asking.why));
        }
        out.push(Action::Report(Report::WillNotTakeOver { reason: reason.to_string() }));
        Ok(())
    }
}
