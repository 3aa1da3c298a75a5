//! The operator's requests to a standby.
//!
//! A request to use or drop a checkpoint applies only to the checkpoint that the operator saw (P2).
//! The resources of a takeover are opened before the request takes effect.

use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};

use ft_core::standby::{Event, Phase};
use kemari_confine::seccomp::Role;
use kemari_confine::threads;

use super::{End, Input, ReplySender, SessionId, StandbyDriver};

impl StandbyDriver {
    pub(super) fn held_session(&self) -> SessionId {
        self.hosted.as_ref().map_or(0, |hosted| hosted.session)
    }

    /// P2: an operator's request to use or drop one checkpoint does not apply to a later one.
    fn check_session(&self, said: SessionId) -> Result<(), String> {
        if said == self.held_session() {
            return Ok(());
        }
        Err("expected the session of the command, found that it has ended: repeat the command if necessary".to_owned())
    }

    pub(super) fn operator(
        &mut self,
        event: Event,
        said: Option<SessionId>,
        answer: ReplySender,
    ) -> Option<End> {
        if let Some(Err(ended)) = said.map(|said| self.check_session(said)) {
            // The requester may have gone.
            let _ = answer.try_send(Err(ended));
            return None;
        }
        if event == Event::OperatorTakeOver && self.may_be_taken_over() {
            let prepared = self.hosted.as_ref().is_some_and(|hosted| hosted.machine.is_prepared());
            if !prepared && self.opens_for_operator {
                let why = "expected one take-over at a time, found one in progress";
                // The requester may have gone.
                let _ = answer.try_send(Err(why.to_owned()));
                return None;
            }
            if !prepared && self.core.lack().is_none_or(|lack| !lack.blocks) {
                self.prepare_for_operator(answer);
                return None;
            }
            self.opens_for_operator = false;
        }
        let mut taken = Ok(());
        let end = self.event_or(event, |illegal| taken = Err(illegal.to_string()));
        if taken.is_err() && self.may_be_taken_over() {
            // P9: no takeover follows, and a primary that was allowed to continue may join again.
            self.reserve.renew();
        }
        // The requester may have gone.
        let _ = answer.try_send(taken);
        end
    }

    /// Whether an operator's request can lead to a takeover: the standby waits for the operator, or
    /// it has an arbiter and a live primary.
    fn may_be_taken_over(&self) -> bool {
        match self.core.phase() {
            Phase::WaitingForOperator => true,
            phase => phase == Phase::Ready && self.arbiter.is_some(),
        }
    }

    /// Opens the resources of the takeover in another thread, before the request takes effect.
    /// Without an arbiter nothing but the request decides the takeover, so errors must be found
    /// first. With an arbiter the primary's output is held from the request on, because nothing is
    /// acknowledged any more, and must not wait for the opening.
    fn prepare_for_operator(&mut self, answer: ReplySender) {
        let Some(hosted) = &self.hosted else { return };
        let (machine, said) = (hosted.machine.clone(), hosted.session);
        self.reserve.release();
        self.opens_for_operator = true;
        let (preparing, inputs, refused) =
            (self.preparing.clone(), self.inputs.clone(), answer.clone());
        let arbiter = self.arbiter.clone();
        let prepare = move || {
            let opened = preparing.prepare(&machine);
            drop(machine);
            let opened = match (opened, arbiter) {
                (Ok(()), Some(arbiter)) => preparing.can_ask(arbiter),
                (opened, _) => opened,
            };
            // A standby that has ended needs no result.
            let _ = inputs.send(Input::Opened(said, opened, answer));
        };
        if let Err(error) = threads::start("takeover", Role::Main, prepare) {
            self.opens_for_operator = false;
            self.reserve.renew();
            let _ = refused.try_send(Err(format!("cannot take over: {error}")));
        }
    }

    /// Continues the operator's request, unless its session has ended in the meantime.
    pub(super) fn opened(
        &mut self,
        said: SessionId,
        opened: Result<(), String>,
        answer: ReplySender,
    ) -> Option<End> {
        let session = self.check_session(said);
        // If the session has changed, a request of the new session may be under way: leave the
        // flag.
        self.opens_for_operator &= session.is_err();
        match (session, opened) {
            (Ok(()), Ok(())) => self.operator(Event::OperatorTakeOver, Some(said), answer),
            (Ok(()), Err(reason)) => {
                // The requester may have gone.
                let _ = answer.try_send(Err(format!("cannot take over: {reason}")));
                match self.core.phase() {
                    // The primary continues, and this side may hold its reserve again.
                    Phase::Ready => self.reserve.renew(),
                    Phase::WaitingForOperator => return self.event(Event::CannotGoOn { reason }),
                    // P7: the primary has gone out of reach in the meantime. Keep what is open: the
                    // claim at the arbiter tries everything again.
                    _ => {}
                }
                None
            }
            (Err(ended), _) => {
                let _ = answer.try_send(Err(ended));
                None
            }
        }
    }
}

/// A request to the standby's thread, which may be busy and whose queue may be full. No call
/// blocks.
pub struct OperatorRequest {
    inputs: SyncSender<Input>,
    input: Option<Input>,
    answer: Receiver<Result<(), String>>,
    accepted: bool,
    /// The answer if the standby has ended.
    when_ended: Result<(), String>,
}

impl OperatorRequest {
    /// A request whose answer goes to the sender that `input` gets.
    pub fn new(inputs: SyncSender<Input>, input: impl FnOnce(ReplySender) -> Input) -> Self {
        let (tell, answer) = sync_channel(1);
        let when_ended = Err("this standby has ended".to_owned());
        Self { inputs, input: Some(input(tell)), answer, accepted: false, when_ended }
    }

    /// A request with an event. `said` is the session that the operator saw, if the request applies
    /// only to that one.
    pub fn event(inputs: SyncSender<Input>, event: Event, said: Option<SessionId>) -> Self {
        Self::new(inputs, |answer| Input::Operator(event, said, answer))
    }

    /// A request to stop the standby. If another client or a signal has stopped it, the request is
    /// fulfilled.
    pub fn stop(inputs: SyncSender<Input>) -> Self {
        Self { when_ended: Ok(()), ..Self::event(inputs, Event::OperatorStop, None) }
    }

    /// Whether the standby has accepted the request; `None` while that is not known.
    ///
    /// # Errors
    /// Why the standby refuses it.
    pub fn accepted(&mut self) -> Option<Result<(), String>> {
        if !self.accepted {
            match self.look()? {
                Ok(()) => self.accepted = true,
                refused => return Some(refused),
            }
        }
        Some(Ok(()))
    }

    fn look(&mut self) -> Option<Result<(), String>> {
        if let Some(input) = self.input.take() {
            match self.inputs.try_send(input) {
                Ok(()) => {}
                Err(TrySendError::Full(input)) => {
                    self.input = Some(input);
                    return None;
                }
                Err(TrySendError::Disconnected(_)) => return Some(self.when_ended.clone()),
            }
        }
        match self.answer.try_recv() {
            Ok(answer) => Some(answer),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(self.when_ended.clone()),
        }
    }
}
