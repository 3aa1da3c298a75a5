//! Frames from the standby.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use io_gate::host::Epoch;

use super::authority::Authority;
use super::{Action, Phase, Primary, Report};
use crate::wire::{ByeReason, Frame, Message};
use crate::{Time, deliberate};

impl Primary {
    /// Bytes of a frame have arrived: the standby is alive.
    pub(super) fn progress(&mut self, now: Time, out: &mut Vec<Action>) {
        if self.is_silent(now) && !deliberate!(ProgressForgives) {
            return self.lose_silent(now, out);
        }
        if let Some(session) = &mut self.session {
            session.heard = now;
        }
    }

    pub(super) fn frame(&mut self, now: Time, frame: Frame, out: &mut Vec<Action>) {
        // A process that slept must not take an old acknowledgement as a sign that nothing has
        // happened meanwhile (P2).
        if self.is_silent(now) && !deliberate!(StaleAck) {
            return self.lose_silent(now, out);
        }
        let Frame { header, message } = frame;
        let kind = message.kind().name();
        if let Message::Refuse { reason } = message {
            return self.refused(now, reason, out);
        }
        if header.term != self.term && !deliberate!(SkipTermCheck) {
            let (found, ours) = (header.term, self.term);
            let why = format!(
                "expected a message of term {ours} from the standby, found one of term {found}"
            );
            return self.break_off(now, why, out);
        }
        if let Some(session) = &mut self.session {
            session.heard = now;
        }
        let running = self.phase != Phase::Joining;
        match message {
            Message::Welcome(theirs) if !running => self.welcomed(now, *theirs, out),
            Message::Ack if self.phase.standby_may_take_over() => self.ack(now, header.epoch, out),
            Message::Verified(verified) if self.phase.standby_may_take_over() => {
                let epoch = header.epoch;
                out.push(Action::Report(Report::Verified { epoch, verified }));
                if !verified.agree {
                    self.distrust(now, out);
                }
            }
            Message::Heartbeat(beat) if running => {
                self.send(Epoch(0), Message::HeartbeatReply(beat), out);
            }
            Message::Readiness { lack, session, from } if running => {
                self.readiness(lack, (session, from), out);
            }
            Message::HeartbeatReply(_) if running => {
                if deliberate!(HeartbeatAsAck)
                    && let Some((front, _)) = self.in_flight.front().copied()
                {
                    self.ack(now, front, out);
                }
            }
            Message::Bye { reason, session, from, why } if reason != ByeReason::Detach => {
                self.bye(now, reason, (session, from), why, out);
            }
            _ => {
                let why = format!("the standby sent {kind} in state {}", self.phase.name());
                self.break_off(now, why, out);
            }
        }
    }

    fn ack(&mut self, now: Time, epoch: Epoch, out: &mut Vec<Action>) {
        let expected = self.in_flight.front().copied();
        let epoch = match expected {
            Some((front, _)) if deliberate!(CountAcks) => front,
            _ => epoch,
        };
        let Some((_, sealed_at)) = expected.filter(|(front, _)| *front == epoch) else {
            let expected = match expected {
                Some((front, _)) => format!("epoch {front} is the next"),
                None => "none is outstanding".to_string(),
            };
            let why = format!("the standby acknowledges epoch {epoch}, but {expected}");
            return self.break_off(now, why, out);
        };
        self.in_flight.pop_front();
        self.acknowledged = Some(epoch);
        if let Some(disks) = &mut self.disks {
            disks.acknowledged(epoch, sealed_at);
        }
        let Authority::Acknowledged(authority) = &mut self.authority else {
            return self.release_durable(now, out);
        };
        let early = deliberate!(ReleaseEarly) && self.in_flight.len() == 1;
        let proof = authority.acknowledged(if early { epoch.next() } else { epoch });
        out.push(Action::Release { proof, latency: now.since(sealed_at) });
        if self.phase == Phase::Arming {
            self.protected(epoch, out);
        }
    }

    fn refused(&mut self, now: Time, reason: String, out: &mut Vec<Action>) {
        if matches!(self.phase, Phase::Joining | Phase::Arming) {
            // It will probably not change its mind soon.
            self.search_rarely();
        }
        self.refusal = Some(reason.clone());
        if self.phase == Phase::Arming && deliberate!(RefuseOpens) {
            self.close(reason.clone(), out);
            return self.go_alone(now, true, reason, out);
        }
        // P1: while a first checkpoint is under way, a refusal does not open the gate. It may be a
        // replay from an earlier session (simulation, seed 426238321002812), and the standby may
        // hold that checkpoint by now.
        self.lose(now, format!("the standby refuses: {reason}"), out);
    }

    /// A Bye counts only for the session in which it was sent (P1).
    fn bye(
        &mut self,
        now: Time,
        reason: ByeReason,
        said: (u64, u64),
        why: String,
        out: &mut Vec<Action>,
    ) {
        let Some((session, theirs)) = self.numbers() else { return };
        if (session, theirs) == said || deliberate!(AnyonesBye) {
            return self.renounced(now, reason, &why, out);
        }
        let why = format!(
            "the standby ends session {:#x} as {:#x}, expected session {session:#x} with {theirs:#x}",
            said.0, said.1
        );
        self.break_off(now, why, out);
    }

    /// The standby has said that it will not take over: no other machine can run this guest now.
    fn renounced(&mut self, now: Time, reason: ByeReason, why: &str, out: &mut Vec<Action>) {
        let held = !matches!(self.phase, Phase::Joining | Phase::Copying);
        let mut text = match reason {
            ByeReason::Detached => "the standby has discarded its checkpoint".to_string(),
            _ => "the standby was stopped by its operator".to_string(),
        };
        if !why.is_empty() {
            text = format!("{text}: {why}");
            // The next session may fail in the same way.
            self.search_rarely();
            out.push(Action::Report(Report::LinkLost { reason: text.clone() }));
        }
        if self.standby_shares_generation() {
            // R6: the standby's word does not take its image out of the set. A power loss here, and
            // it could be started without what this machine tells from now on.
            return self.lose(now, text, out);
        }
        self.close(text.clone(), out);
        self.go_alone(now, held, text, out);
    }
}
