//! The standby's own thread: it takes inputs, gives events to the protocol core, and performs the
//! returned actions.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, TryRecvError};
use std::time::Duration;

use ft_core::Illegal;
use ft_core::standby::{Action, Event, Phase, Report};
use kemari_confine::logging::STATE;

use super::question::Question;
use super::{End, Input, StandbyDriver};

/// The result of an action.
pub(super) enum Next {
    Nothing,
    Event(Event),
    End(End),
}

impl StandbyDriver {
    pub(super) fn serve(&mut self) -> End {
        loop {
            let input = self.next_input();
            if let Some(waits) = self.asked.as_mut().and_then(Question::newly_overdue) {
                log::warn!(target: STATE, "{waits}");
            }
            let event = match input {
                Some(Input::Event(event)) => event,
                Some(Input::Frames(link, frames)) => {
                    for frame in frames {
                        if let Some(end) = self.event(Event::Frame { link, frame }) {
                            return end;
                        }
                    }
                    continue;
                }
                Some(Input::Link(link, peer, hello)) => match self.admit(link, &peer) {
                    // The core ignores frames from a link that it has refused.
                    Some(link) => Event::Frame { link, frame: *hello },
                    None => continue,
                },
                Some(Input::Operator(event, said, answer)) => {
                    if let Some(end) = self.operator(event, said, answer) {
                        return end;
                    }
                    continue;
                }
                Some(Input::Opened(said, opened, answer)) => {
                    if let Some(end) = self.opened(said, opened, answer) {
                        return end;
                    }
                    continue;
                }
                Some(Input::RotateKeys(answer)) => {
                    // The requester may have gone.
                    let _ = answer.try_send(self.rotate_keys());
                    continue;
                }
                None => Event::Tick,
            };
            if let Some(end) = self.event(event) {
                return end;
            }
        }
    }

    /// The next input; `None` when the core's deadline has passed and no input waits. Frames that
    /// have arrived come before a tick: otherwise a busy standby would suspect a primary that is
    /// sending.
    fn next_input(&self) -> Option<Input> {
        if self.stop_wanted.swap(false, Ordering::AcqRel) {
            return Some(Input::Event(Event::OperatorStop));
        }
        match self.queue.try_recv() {
            Ok(input) => return Some(input),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => unreachable!("this thread holds a sender itself"),
        }
        let deadline = self.core.next_deadline().map(|deadline| deadline.since(self.now()));
        let overdue = self.asked.as_ref().and_then(Question::overdue_in);
        let wait = deadline.into_iter().chain(overdue).min();
        match self.queue.recv_timeout(wait.unwrap_or(Duration::from_secs(3600))) {
            Ok(input) => Some(input),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                unreachable!("this thread holds a sender itself")
            }
        }
    }

    pub(super) fn event(&mut self, event: Event) -> Option<End> {
        self.event_or(event, |illegal| log::debug!("{illegal}"))
    }

    /// Gives the core an event and performs the returned actions. Calls `refused` if the core
    /// refuses the event.
    pub(super) fn event_or(
        &mut self,
        event: Event,
        mut refused: impl FnMut(Illegal),
    ) -> Option<End> {
        let mut events = vec![self.if_it_can_go_on(event)];
        while let Some(event) = events.pop() {
            if matches!(
                event,
                Event::ArbiterGranted { .. }
                    | Event::ArbiterDenied { .. }
                    | Event::ArbiterUnreachable { .. }
                    | Event::NotReady { .. }
            ) {
                self.asked = None;
            }
            if matches!(event, Event::CannotGoOn { .. }) {
                self.opens_for_operator = false;
            }
            let won = match &event {
                Event::ArbiterGranted { term } => Some(*term),
                _ => None,
            };
            match self.core.handle(self.now(), event) {
                Ok(actions) => {
                    for action in actions {
                        match self.perform(action) {
                            Next::Nothing => {}
                            Next::Event(event) => events.insert(0, event),
                            Next::End(end) => {
                                self.show();
                                return Some(end);
                            }
                        }
                    }
                }
                Err(illegal) => {
                    if let Some(term) = won {
                        self.give_free(term);
                    }
                    refused(illegal);
                }
            }
        }
        // A waiting standby holds no machine and no disk lock: a refused primary needs the lock
        // when it connects again.
        if self.core.phase() == Phase::Waiting {
            self.let_go();
        }
        self.show();
        None
    }

    fn perform(&mut self, action: Action) -> Next {
        match action {
            Action::Describe { hello } => Next::Event(self.describe(&hello)),
            Action::Send { link, frame } => self.send(link, &frame),
            Action::CloseLink { link, reason } => {
                if self.link.as_ref().is_some_and(|(id, _)| *id == link)
                    && let Some((id, link)) = self.link.take()
                {
                    log::info!("link closed: {reason}");
                    link.shutdown();
                    // Not for a second primary that was refused.
                    if id == self.session.0 {
                        self.record(kemari_audit::Event::Left { session: self.session.1 });
                    }
                }
                Next::Nothing
            }
            Action::ApplyBulk(pages) => {
                self.apply_bulk(&pages);
                self.buffers.give(pages.into_bytes());
                Next::Nothing
            }
            Action::StoreImages(bytes) => {
                self.images.take(&bytes.0);
                self.buffers.give(bytes.0);
                Next::Nothing
            }
            Action::Check(checkpoint) => {
                self.give_signs_of_life_for(&checkpoint);
                let checked = self.check(&checkpoint);
                self.pulse.stop();
                Next::Event(checked)
            }
            Action::Apply(checkpoint) => {
                self.give_signs_of_life_for(&checkpoint);
                let applied = self.apply(&checkpoint);
                self.pulse.stop();
                if let Some(checkpoint) = Arc::into_inner(checkpoint) {
                    checkpoint.into_buffers().for_each(|buffer| self.buffers.give(buffer));
                }
                applied
            }
            Action::AskArbiter { term, why } => {
                // Free the reserved descriptors: the takeover opens disks and networks from here
                // on.
                self.reserve.release();
                self.ask_arbiter(term, why)
            }
            Action::TakeOver { taken, reason } => self.hand_over(taken, reason),
            Action::Discard { reason } => {
                log::info!("checkpoint discarded: {reason}");
                self.record(kemari_audit::Event::Discarded { session: self.session.1 });
                self.let_go();
                self.opens_for_operator = false;
                if self.asked.as_ref().is_some_and(Question::withdraw) {
                    self.asked = None;
                }
                self.expected.set(None);
                self.reserve.renew();
                Next::Nothing
            }
            Action::Stop { reason } => Next::End(End::Stopped { reason, had_won: false }),
            Action::Report(report) => {
                let is_new = self.shown().report(&report);
                if let Report::WillNotTakeOver { .. } | Report::WaitingForOperator { .. } = report {
                    self.reserve.renew();
                }
                match &report {
                    _ if !is_new => log::debug!("{report}"),
                    Report::Verified { verified, .. } if verified.agree => log::debug!("{report}"),
                    Report::Verified { .. } => log::error!(target: STATE, "{report}"),
                    Report::Filling { .. } | Report::Ready { .. } | Report::Whole => {
                        log::info!(target: STATE, "{report}");
                    }
                    _ => log::warn!(target: STATE, "{report}"),
                }
                Next::Nothing
            }
        }
    }

    pub(super) fn record(&self, event: kemari_audit::Event) {
        if let Some(audit) = &self.config.audit {
            audit.record(event);
        }
    }

    fn show(&self) {
        self.shown().update(&self.core, self.held_session(), self.asked.as_ref());
    }
}
