//! The operator's requests to protect the machine or to end its protection, and their results.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use ft_core::primary::{Event, Phase, Report};
use kemari_machine::Ended;
use kemari_machine::ungated::Ungated;

use super::{Engine, STATUS_PATIENCE};
use crate::link::LinkAddr;

/// The answer to an operator while another thread holds the engine's lock. The answering thread
/// serves other requests too, so it does not wait for the lock.
pub(super) const STUCK: &str =
    "the engine is stuck: one of its threads waits with the engine's lock held";

/// Upper bound of connection attempts under way. Only the last one counts, but earlier ones cannot
/// be cancelled.
const MAX_ATTEMPTS: usize = 8;

/// The operator's last request for a standby.
#[derive(Debug, Default)]
pub(super) struct Attempt {
    number: u64,
    /// The first known result: the epoch that the standby holds, or why it holds none.
    outcome: Option<Result<u64, String>>,
}

impl Attempt {
    pub(super) fn note(&mut self, report: &Report) {
        let outcome = match report {
            Report::Protected { epoch } => Ok(epoch.0),
            Report::NoStandby { reason } | Report::LinkLost { reason } => Err(reason.clone()),
            Report::Degraded { .. } => Err(report.to_string()),
            _ => return,
        };
        self.outcome.get_or_insert(outcome);
    }
}

impl Engine {
    /// Starts to look for a standby at `addr`. Drops a standby that is still joining, because it
    /// may hang. Returns the number of the request, for [`attempt`](Self::attempt).
    ///
    /// # Errors
    /// A sentence for the operator.
    pub fn protect(self: &Arc<Self>, addr: LinkAddr) -> Result<u64, String> {
        let ungated = Ungated::of(self.machine.config()).and_then(|found| found.refusal(true));
        if let Some(refusal) = ungated {
            return Err(refusal.to_string());
        }
        let mut state = self.lock_within(STATUS_PATIENCE).ok_or(STUCK)?;
        // P9: each attempt is a thread, which may wait for storage or an arbiter that does not
        // answer.
        if Arc::strong_count(&self.attempts) > MAX_ATTEMPTS {
            return Err(format!(
                "{MAX_ATTEMPTS} earlier attempts to reach a standby have not finished: look for a disk or an arbiter \
                 that does not answer, then try again"
            ));
        }
        let under_way = state.connecting;
        let actions = state
            .primary
            .handle(self.now(), Event::OperatorProtect)
            .map_err(|illegal| illegal.to_string())?;
        state.standby = Some(addr);
        self.perform(&mut state, actions);
        if under_way.is_some() && state.connecting == under_way {
            // The connection under way goes to the former address, which may not answer for long.
            // Start a new one.
            self.connect(&mut state);
        }
        state.attempt = Attempt { number: state.attempt.number + 1, outcome: None };
        self.tell_ticker(&state);
        Ok(state.attempt.number)
    }

    /// The result of request `number`; `None` while it is not known.
    ///
    /// # Errors
    /// When another request has replaced it, the standby cannot protect the machine, or the machine
    /// has ended.
    pub fn attempt(&self, number: u64) -> Option<Result<u64, String>> {
        let state = self.lock_within(Duration::ZERO)?;
        if state.attempt.number != number {
            return Some(Err("another `protect` has replaced this one".to_owned()));
        }
        match (&state.attempt.outcome, state.primary.phase()) {
            (Some(outcome), _) => Some(outcome.clone()),
            (None, Phase::Stopped) => Some(Err(state.why("the machine has ended"))),
            (None, _) => None,
        }
    }

    /// Ends the protection, at once or when the standby or the arbiter has answered.
    /// [`runs_alone`](Self::runs_alone) returns the result.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub fn run_alone(self: &Arc<Self>) -> Result<(), String> {
        let mut state = self.lock_within(STATUS_PATIENCE).ok_or(STUCK)?;
        let actions = state
            .primary
            .handle(self.now(), Event::OperatorRunAlone)
            .map_err(|illegal| illegal.to_string())?;
        let why = || Err("the operator has ended protection".to_owned());
        state.attempt.outcome.get_or_insert_with(why);
        self.perform(&mut state, actions);
        self.tell_ticker(&state);
        Ok(())
    }

    /// Whether the machine now runs without a standby; `None` while the standby or the arbiter has
    /// not answered.
    ///
    /// # Errors
    /// When the machine has ended, the operator must decide again, or another command has replaced
    /// this one.
    pub fn runs_alone(&self) -> Option<Result<(), String>> {
        let state = self.lock_within(Duration::ZERO)?;
        match state.primary.phase() {
            Phase::Alone => Some(Ok(())),
            Phase::Detaching | Phase::Doubting => None,
            Phase::Stopped => Some(Err(state.why("the machine has ended"))),
            Phase::WaitingForOperator => Some(Err(state.why(
                "the standby has not confirmed that it has discarded its checkpoint. If it does not run the guest, \
                 repeat the command",
            ))),
            phase => {
                Some(Err(format!("the machine is {}: another command has replaced this one", phase.name())))
            }
        }
    }

    /// Requests new keys for the link. The receiver gets the result when they are in use.
    ///
    /// # Errors
    /// When there is no link, the link is not encrypted, or an earlier request is not done yet.
    pub fn rotate_keys(&self) -> Result<Receiver<Result<(), String>>, String> {
        if self.options.security.tls.is_none() {
            return Err("expected a link with --tls, found one without".to_owned());
        }
        let state = self.lock_within(STATUS_PATIENCE).ok_or(STUCK)?;
        let session = state.session.as_ref();
        let (tell, told) = sync_channel(1);
        let session = session.ok_or("expected a link to a standby, found none")?;
        match session.rotate_keys(tell) {
            true => Ok(told),
            false => Err("new keys were requested, and are not in use yet".to_owned()),
        }
    }

    /// Records that the machine has ended and no work is left.
    pub fn note_put_away(&self, ended: Ended) {
        // Only the first end counts.
        let _ = self.put_away.set(ended);
    }

    /// How the machine has ended; `None` while work is left.
    pub fn put_away(&self) -> Option<Ended> {
        self.put_away.get().cloned()
    }

    /// The state of the protection in a few words, with its reason if known.
    pub fn so_far(&self) -> String {
        let Some(state) = self.lock_within(STATUS_PATIENCE) else { return STUCK.to_owned() };
        state.why(state.primary.phase().name())
    }
}

impl super::EngineState {
    fn why(&self, what: &str) -> String {
        match self.primary.reason() {
            Some(reason) => format!("{what}: {reason}"),
            None => what.to_owned(),
        }
    }
}
