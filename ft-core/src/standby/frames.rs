//! Frames from the primary.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::{Action, Phase, Standby, staging};
use crate::wire::{ByeReason, Frame, Message, Outgoing};
use crate::{Time, deliberate};

impl Standby {
    /// Bytes of a frame have arrived: the primary is alive, and this side shows that it is too.
    pub(super) fn progress(&mut self, now: Time, out: &mut Vec<Action>) {
        let interval = self.options.heartbeat_interval;
        let Some(session) = &mut self.session else { return };
        session.heard = now;
        if session.beat + interval <= now {
            session.beat = now;
            out.extend(self.sign_of_life(now).map(|(link, frame)| Action::Send { link, frame }));
        }
    }

    pub(super) fn frame(&mut self, now: Time, frame: Frame, out: &mut Vec<Action>) {
        let Frame { header, message } = frame;
        let kind = message.kind().name();
        if let Message::Refuse { reason } = message {
            return self.lose(format!("the primary does not go on: {reason}"), out);
        }
        let Some(session) = &mut self.session else { return };
        let expected = session.hello.as_ref().map(|hello| hello.term);
        if let Some(expected) = expected.filter(|term| *term != header.term) {
            let found = header.term;
            let why = format!(
                "expected a message of term {expected} from the primary, found one of term {found}"
            );
            return self.break_off(why, out);
        }
        if !matches!(message, Message::Heartbeat(_)) || !deliberate!(DeafToHeartbeats) {
            session.heard = now;
        }
        let greeted = expected.is_some();
        match (self.phase, message) {
            (
                Phase::Greeting | Phase::WaitingForOperator | Phase::Doubting,
                Message::Hello(hello),
            ) if !greeted && hello.term == header.term => {
                self.hello(hello, out);
            }
            (
                Phase::Greeting | Phase::Filling | Phase::Ready,
                Message::Bye { reason, session, from, .. },
            ) => {
                self.bye(reason, (session, from), out);
            }
            (Phase::Filling | Phase::Ready, Message::Heartbeat(beat)) => {
                self.send(Message::HeartbeatReply(beat), out);
            }
            (Phase::Filling | Phase::Ready, Message::HeartbeatReply(_)) => {}
            (Phase::Doubting, Message::Heartbeat(beat)) => {
                self.send(Message::HeartbeatReply(beat), out);
            }
            // The arbiter was asked on the operator's request: it is too late to receive data or to
            // give up the checkpoint.
            (Phase::Doubting, _) => {}
            (Phase::Filling | Phase::Ready, message) => {
                self.progress(now, out);
                let Some(session) = &mut self.session else { return };
                let last = self.holding.as_ref().map(|holding| holding.epoch);
                match session.staging.take(last, &header, message) {
                    Ok(staging::Step::Staged) => {}
                    Ok(staging::Step::Bulk(pages)) => out.push(Action::ApplyBulk(pages)),
                    Ok(staging::Step::Images(bytes)) => out.push(Action::StoreImages(bytes)),
                    Ok(staging::Step::Whole(checkpoint)) => {
                        let checkpoint = Arc::new(checkpoint);
                        session.checking = Some(checkpoint.clone());
                        if deliberate!(AckBeforeCheck) {
                            let frame = Outgoing {
                                epoch: header.epoch,
                                term: header.term,
                                message: Message::Ack,
                            };
                            out.push(Action::Send { link: session.link, frame });
                        }
                        out.push(Action::Check(checkpoint));
                    }
                    Err(error) => self.break_off(format!("{kind}: {error}"), out),
                }
            }
            _ => {
                let why = format!("the primary sent {kind} in state {}", self.phase.name());
                self.break_off(why, out);
            }
        }
    }

    fn bye(&mut self, reason: ByeReason, (said, from): (u64, u64), out: &mut Vec<Action>) {
        let (session, theirs) = (self.number(), self.theirs());
        if said == 0 && deliberate!(ByeOfNobody) {
            self.close("", out);
            self.discard(String::new(), out);
            self.phase = Phase::Waiting;
            return;
        }
        if said == 0 {
            return self.lose("the primary disconnected before the answer".to_string(), out);
        }
        // A Bye of another session does not give up the checkpoint (P4).
        if session != said || theirs != from {
            let why = format!(
                "the primary ends session {said:#x} as {from:#x}, expected session {session:#x} with {theirs:#x}"
            );
            return self.break_off(why, out);
        }
        let why = match reason {
            ByeReason::PoweredOff => "the guest has powered off",
            ByeReason::Stopped => "the primary was stopped by its operator",
            ByeReason::Detach => "the primary runs alone, as its operator decided",
            ByeReason::Detached => {
                let why = "the primary sent a standby's Bye".to_string();
                return self.break_off(why, out);
            }
        };
        if reason == ByeReason::Detach {
            // After this Bye the primary continues at once: the checkpoint must never be used.
            self.say_bye(ByeReason::Detached, String::new(), out);
            if deliberate!(RenounceAndKeep) && self.phase == Phase::Ready {
                self.close(why, out);
                return self.doubt(why.to_string(), out);
            }
            self.close(why, out);
            self.discard(why.to_string(), out);
            self.phase = Phase::Waiting;
        } else {
            self.stop(why.to_string(), out);
        }
    }
}
