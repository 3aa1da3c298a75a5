//! Claims the next term and hands the machine over. Everything that a takeover needs is tried and
//! opened before (P4, P9).

use std::time::Instant;

use ft_core::Term;
use ft_core::standby::{Event, Phase, TakenOver};
use kemari_arbiter::{ClaimAnswer, ask};
use kemari_audit::Won;
use kemari_confine::seccomp::Role;
use kemari_confine::threads;
use kemari_hypervisor::kvm::trial::TrialError;

use super::hosted::Hosted;
use super::question::Question;
use super::serve::Next;
use super::{End, Inheritance, Input, StandbyDriver};
use crate::session::StateBlobError;

impl StandbyDriver {
    /// Tries the state before an operator's takeover without an arbiter, which needs no other
    /// check. A state that fails becomes [`Event::CannotGoOn`].
    pub(super) fn if_it_can_go_on(&mut self, event: Event) -> Event {
        if event != Event::OperatorTakeOver || self.core.phase() != Phase::WaitingForOperator {
            return event;
        }
        match self.try_applied() {
            Ok(()) => event,
            Err(reason) => Event::CannotGoOn { reason },
        }
    }

    /// Checks that this host's KVM accepts the state from which a takeover would continue. If the
    /// host lacks a resource for the trial, the state counts as accepted.
    fn try_applied(&mut self) -> Result<(), String> {
        let Some(Hosted { machine, applied: Some(state), trial, .. }) = &mut self.hosted else {
            return Err("there is no checkpoint".to_owned());
        };
        match Hosted::trial_of(machine, trial).and_then(|trial| state.attempt(trial)) {
            Ok(()) => Ok(()),
            Err(StateBlobError::Trial(error @ TrialError::State(_))) => Err(error.to_string()),
            Err(error) => {
                log::warn!(
                    "the checkpoint failed its second trial, just before the takeover: {error}"
                );
                Ok(())
            }
        }
    }

    pub(super) fn ask_arbiter(&mut self, term: Term, why: String) -> Next {
        let Some(arbiter) = self.arbiter.clone() else { return Next::Nothing };
        // P4: try the state before the term is won. During the session only states of a new kind
        // were tried.
        if let Err(reason) = self.try_applied() {
            return Next::Event(Event::CannotGoOn { reason });
        }
        let Some(machine) = self.hosted.as_ref().map(|hosted| hosted.machine.clone()) else {
            return Next::Nothing;
        };
        let event = move |answer| match answer {
            ClaimAnswer::Granted => Event::ArbiterGranted { term },
            ClaimAnswer::Denied { holder } => Event::ArbiterDenied { term, holder },
            ClaimAnswer::Unreachable { reason } => Event::ArbiterUnreachable { reason },
        };
        let question = Question::new(term);
        self.asked = Some(question.clone());
        self.asked_for = Some((term, machine.config().clone()));
        let (preparing, inputs) = (self.preparing.clone(), self.inputs.clone());
        let asking = move || {
            // P9: do everything that can fail in a takeover before the term is won.
            let prepared = preparing.prepare(&machine);
            drop(machine);
            let event = match prepared {
                Ok(()) if question.may_be_asked() => event(ask(&*arbiter, term, &why)),
                Ok(()) => return,
                Err(reason) => Event::NotReady { reason },
            };
            // A standby that has ended needs no answer.
            let _ = inputs.send(Input::Event(event));
        };
        match threads::start("claim", Role::Main, asking) {
            Ok(_) => Next::Nothing,
            Err(error) => Next::Event(event(ClaimAnswer::no_thread(&error))),
        }
    }

    pub(super) fn hand_over(&mut self, taken: TakenOver, reason: String) -> Next {
        if let Some((_, link)) = self.link.take() {
            link.shutdown();
        }
        let Some(Hosted { machine, authority, applied: Some(state), .. }) = self.hosted.take()
        else {
            unreachable!("P4: the core takes over only after a checkpoint was applied");
        };
        assert!(state.epoch() == taken.epoch(), "P4: the checkpoint applied is the one taken over");
        let won_at = Instant::now();
        self.reserve.release();
        self.record(kemari_audit::Event::TermWon {
            how: Won::TakeOver,
            term: taken.term().0,
            epoch: taken.epoch().0,
            session: self.session.1,
            next: state.next_id().0,
        });
        Next::End(End::TakeOver(Box::new(Inheritance {
            machine,
            authority,
            state,
            taken,
            reason,
            won_at,
        })))
    }
}
