//! The status of a standby for operators.

use ft_core::standby::{Phase, Report, Standby};
use serde_json::{Value, json};

use super::SessionId;
use super::question::Question;
use crate::repeats::Repeats;
use crate::stats::Distribution;

/// The state of a standby that holds a checkpoint and could not continue from it.
const DEGRADED: &str = "degraded";

/// A copy of the standby's status, for other threads.
#[derive(Debug)]
pub struct StandbyStatus {
    name: String,
    state: &'static str,
    term: u64,
    epoch: u64,
    checkpoints: u64,
    dirty_pages: Distribution,
    verified: u64,
    mismatches: u64,
    /// Repeated failures of claims: the arbiter is unreachable, or this side could not take over.
    unanswered: Repeats,
    reason: Option<String>,
    /// The resource that a takeover lacks.
    lack: Option<String>,
    /// The primary is unreachable, and the lack keeps this side from asking the arbiter.
    held_back: bool,
    session: SessionId,
    /// The claim that is sent to the arbiter or about to be sent.
    asked: Option<Question>,
    /// The result of a takeover whose term was won.
    taken_over: Option<Result<u64, String>>,
}

impl StandbyStatus {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            state: "waiting",
            term: 0,
            epoch: 0,
            checkpoints: 0,
            dirty_pages: Distribution::default(),
            verified: 0,
            mismatches: 0,
            unanswered: Repeats::default(),
            reason: None,
            lack: None,
            held_back: false,
            session: 0,
            asked: None,
            taken_over: None,
        }
    }

    /// The state's name.
    #[must_use]
    pub fn state(&self) -> &'static str {
        self.state
    }

    /// The current session.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Sets the result of a takeover: the term in which the guest runs here, or why it does not.
    /// Only the first call counts.
    pub fn taken_over(&mut self, term: Result<u64, String>) {
        self.taken_over.get_or_insert(term);
    }

    /// The result of an operator's takeover request; `None` while it is not known.
    ///
    /// # Errors
    /// When this standby could not take over, or waits again.
    #[must_use]
    pub fn takeover(&self) -> Option<Result<u64, String>> {
        match (self.state, &self.taken_over) {
            (_, Some(outcome)) => Some(outcome.clone()),
            ("active" | "doubting", None) => None,
            (state, None) => Some(Err(self.why(state))),
        }
    }

    /// The state and its reason, if known, in a few words.
    #[must_use]
    pub fn so_far(&self) -> String {
        self.why(self.state)
    }

    fn told_reason(&self) -> Option<String> {
        let overdue = self.asked.as_ref().and_then(Question::overdue);
        match (self.known_reason(), overdue) {
            (Some(reason), Some(overdue)) => Some(format!("{reason}; {overdue}")),
            (reason, overdue) => reason.or(overdue),
        }
    }

    /// The reason, with the lack first: the operator has to correct it.
    fn known_reason(&self) -> Option<String> {
        let (lack, reason) = (self.lack.as_ref(), self.reason.as_ref());
        match (lack, reason) {
            (Some(lack), Some(reason)) if self.held_back => {
                Some(format!("will not take over before this is fixed: {lack} ({reason})"))
            }
            (Some(lack), _) => Some(format!("could not continue the guest: {lack}")),
            (None, Some(reason)) if self.held_back => {
                Some(format!("will not take over before this is fixed: {reason}"))
            }
            (None, reason) => reason.cloned(),
        }
    }

    /// Sets why the guest, which is on this host, cannot continue yet; `None` when it can.
    pub fn cannot_go_on(&mut self, reason: Option<String>) {
        self.lack = reason;
    }

    fn why(&self, state: &str) -> String {
        match self.told_reason() {
            Some(reason) => format!("{state}: {reason}"),
            None => state.to_owned(),
        }
    }

    pub(super) fn update(&mut self, core: &Standby, session: SessionId, asked: Option<&Question>) {
        self.session = session;
        self.asked = asked.cloned();
        self.lack = core.lack().map(|lack| lack.reason.clone());
        self.held_back = core.is_held_back();
        self.state = match core.phase() {
            // It holds a checkpoint and could not continue from it.
            Phase::Ready if core.lack().is_some() => DEGRADED,
            phase => phase.name(),
        };
        self.term = core.term().0;
        self.epoch = core.epoch().map_or(0, |epoch| epoch.0);
        if self.reason.as_deref() != core.reason() {
            self.reason = core.reason().map(str::to_owned);
        }
    }

    pub(super) fn applied(&mut self, pages: u64) {
        self.checkpoints += 1;
        self.dirty_pages.add(pages);
    }

    /// How often `--verify` has found a difference between the two sides (P8).
    pub fn mismatches(&self) -> u64 {
        self.mismatches
    }

    /// Whether the primary's fate was unknown at the last update, before the event that is being
    /// reported.
    fn is_in_doubt(&self) -> bool {
        [Phase::Doubting, Phase::WaitingForOperator].iter().any(|phase| phase.name() == self.state)
    }

    /// Counts a report; returns whether to log it.
    pub(super) fn report(&mut self, report: &Report) -> bool {
        match report {
            Report::ArbiterUnreachable { .. } | Report::WillNotTakeOver { .. } => {
                return self.unanswered.failed(&report.to_string());
            }
            Report::Verified { verified, .. } => {
                self.verified += 1;
                self.mismatches += u64::from(!verified.agree);
            }
            // This is the link of a new peer: the primary's link was lost before.
            Report::LinkLost { .. } if self.is_in_doubt() => {}
            Report::Filling { .. } | Report::LinkLost { .. } | Report::GaveUp { .. } => {
                self.unanswered.over();
            }
            _ => {}
        }
        true
    }

    /// The status as JSON.
    pub fn json(&self) -> Value {
        json!({
            "role": "standby",
            "state": self.state,
            "name": self.name,
            "term": self.term,
            "epoch": self.epoch,
            "acknowledged": self.epoch,
            "checkpoints": self.checkpoints,
            "dirty_pages": self.dirty_pages.summary(),
            "verify": { "checked": self.verified, "mismatches": self.mismatches },
            "takeover_us": null,
            "unanswered": self.unanswered.count(),
            "pid": std::process::id(),
            "reason": self.told_reason(),
            "lacks": self.lack,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P9. Fails if each refused primary makes repeated failures appear in the log again.
    #[test]
    fn a_newcomer_is_no_end_of_a_doubt() {
        let mut status = StandbyStatus::new("vm");
        let lost = Report::LinkLost { reason: "gone".to_owned() };
        let unanswered = Report::ArbiterUnreachable { reason: "away".to_owned() };
        for phase in [Phase::Doubting, Phase::WaitingForOperator] {
            status.state = Phase::Ready.name();
            let told = [&lost, &unanswered, &unanswered].map(|report| status.report(report));
            assert_eq!(told, [true, true, false]);
            status.state = phase.name();
            let told = [&lost, &unanswered].map(|report| status.report(report));
            assert_eq!((told, status.unanswered.count()), ([true, false], 3));
        }
    }
}
