//! Performs the actions of the protocol core, in order, under the engine's lock.
//!
//! An action that may take long runs in a thread: the sender, a connection, a request to the
//! arbiter.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ft_core::primary::{Action, Event, Report};
use ft_core::wire::{ByeReason, Message};
use ft_core::{Epoch, LinkId, Term};
use kemari_arbiter::{ClaimAnswer, ask};
use kemari_audit::Won;
use kemari_confine::logging::STATE;
use kemari_machine::Ended;

use super::{Engine, EngineState, Step};

impl Engine {
    pub(super) fn perform(self: &Arc<Self>, state: &mut EngineState, actions: Vec<Action>) {
        for action in actions {
            self.perform_one(state, action);
        }
    }

    fn perform_one(self: &Arc<Self>, state: &mut EngineState, action: Action) {
        let gate = self.machine.gate();
        match action {
            Action::Connect => self.connect(state),
            Action::Send { link, frame } => {
                if let Some(session) = state.session_of(link) {
                    session.send_control(&frame);
                }
            }
            Action::CloseLink { link, reason } => {
                log::debug!("link {} closed: {reason}", link.0);
                if let Some(session) = state.session_of(link) {
                    self.record(kemari_audit::Event::Left { session: session.number() });
                    self.end_session(state);
                }
            }
            Action::StartPrecopy { link, session: number, images, .. } => {
                let sign = state.primary.sign_of_life(self.now()).map(|(_, sign)| sign);
                if let Some(session) = state.session_of(link) {
                    session.start_precopy(number, &images, sign.as_ref());
                }
            }
            Action::SealFirst { link } => {
                state.seal_first = Some(link);
                self.wake_sealer();
            }
            Action::Hold => gate.hold(),
            Action::Release { proof, latency } => {
                self.checkpointed.store(true, Ordering::Release);
                if let Some(session) = &state.session {
                    self.options.steps.reached(session.link(), Step::Releasing);
                }
                self.record_ack(state, proof.epoch());
                gate.release(proof);
                self.stats().commit_latency.add_time(latency);
                // A slot in the pipeline is free: an epoch can be sealed.
                self.wake_sealer();
            }
            Action::RunAlone(proof) => gate.run_alone(proof),
            Action::AskArbiter { term, why } => self.ask_arbiter(term, why),
            Action::Stop { reason, fenced } => self.stop(state, reason, fenced),
            Action::Report(report) => {
                state.attempt.note(&report);
                if let Report::RunsAlone { term, .. } = &report {
                    let (how, term) = (Won::Alone, term.0);
                    let won =
                        kemari_audit::Event::TermWon { how, term, epoch: 0, session: 0, next: 0 };
                    self.record(won);
                }
                let is_new = self.stats().report(&report);
                match &report {
                    _ if !is_new => log::debug!("{report}"),
                    Report::Verified { verified, .. } if verified.agree => log::debug!("{report}"),
                    Report::Verified { .. } => log::error!(target: STATE, "{report}"),
                    Report::Joined { .. } | Report::Protected { .. } | Report::Recovered => {
                        log::info!(target: STATE, "{report}");
                    }
                    _ => log::warn!(target: STATE, "{report}"),
                }
            }
        }
    }

    /// Ends the session: its sender sends the queued frames, then closes the link. From here on the
    /// session touches nothing that the next session uses (P4, P8).
    fn end_session(&self, state: &mut EngineState) {
        self.tracking.end();
        *self.final_sender() = None;
        state.session = None;
        state.seal_first = None;
    }

    pub(super) fn record(&self, event: kemari_audit::Event) {
        if let Some(audit) = &self.options.audit {
            audit.record(event);
        }
    }

    /// P1: records the acknowledgement before any effect is released.
    fn record_ack(&self, state: &EngineState, epoch: Epoch) {
        if let Some(session) = &state.session {
            let (term, session) = (state.primary.term().0, session.number());
            self.record(kemari_audit::Event::AckReceived { epoch: epoch.0, term, session });
        }
    }

    /// P2: records that a standby gives up the right to take over: its Bye may open the gate.
    pub(super) fn record_bye(&self, state: &EngineState, link: LinkId, message: &Message) {
        if let Message::Bye { reason, session, .. } = message
            && *reason != ByeReason::Detach
            && state.session_of(link).is_some()
        {
            self.record(kemari_audit::Event::HeardGivenUp { session: *session });
        }
    }

    fn stop(&self, state: &mut EngineState, reason: String, fenced: bool) {
        state.stopped = true;
        self.end_session(state);
        if fenced {
            self.machine.gate().set_fenced_off();
            self.machine.end(Ended::Fenced(reason));
        }
    }

    /// Asks the arbiter in a thread of its own: see [`ask`].
    fn ask_arbiter(self: &Arc<Self>, term: Term, why: String) {
        let Some(arbiter) = self.arbiter.clone() else { return };
        let event = move |answer| match answer {
            ClaimAnswer::Granted => Event::ArbiterGranted { term },
            ClaimAnswer::Denied { holder } => Event::ArbiterDenied { term, holder },
            ClaimAnswer::Unreachable { reason } => Event::ArbiterUnreachable { reason },
        };
        let (asking, failed) = (self.clone(), self.clone());
        let under_way = self.claims.begin();
        self.launcher.launch(
            "claim",
            move || {
                let answer = ask(&*arbiter, term, &why);
                under_way.is_answered(term, &answer);
                asking.event(event(answer));
            },
            move |error| failed.event(event(ClaimAnswer::no_thread(&error))),
        );
    }

    pub(super) fn wake_sealer(&self) {
        // The counter does not overflow during the run of a machine. A full counter also wakes the
        // thread.
        let _ = self.machine.engine_event().write(1);
    }
}
