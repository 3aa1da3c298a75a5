//! The connection with one standby: who is on it, how long it may be silent, and what is sent.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use io_gate::host::Epoch;

use super::{Action, Phase, Primary};
use crate::handshake::Hello;
use crate::wire::{ByeReason, Heartbeat, Message, Outgoing};
use crate::{LinkId, Time};

/// The connection with one standby.
#[derive(Debug)]
pub(super) struct StandbySession {
    pub(super) link: LinkId,
    pub(super) hello: Box<Hello>,
    pub(super) heard: Time,
    pub(super) beat: Time,
    pub(super) beats: u64,
    /// The time by which the standby must have given up its checkpoint.
    pub(super) detach_by: Option<Time>,
    /// The standby's number for this session, once it has welcomed this side.
    pub(super) theirs: Option<u64>,
}

impl Primary {
    /// A link that this machine has closed may still deliver frames: they are ignored.
    pub(super) fn is_current(&self, link: LinkId) -> bool {
        self.session.as_ref().is_some_and(|session| session.link == link)
    }

    /// This side's number for the session and the standby's, which is 0 before the standby has sent
    /// it.
    pub(super) fn numbers(&self) -> Option<(u64, u64)> {
        let numbers =
            |session: &StandbySession| (session.hello.session, session.theirs.unwrap_or(0));
        self.session.as_ref().map(numbers)
    }

    pub(super) fn patience(&self) -> Duration {
        if self.phase.standby_may_take_over() {
            self.options.heartbeat_timeout
        } else {
            self.options.setup_timeout
        }
    }

    pub(super) fn is_silent(&self, now: Time) -> bool {
        self.session.as_ref().is_some_and(|session| now.since(session.heard) > self.patience())
    }

    /// The heartbeat to send, also for a driver whose event thread is busy. `None` before the
    /// standby has welcomed this machine.
    pub fn sign_of_life(&mut self, now: Time) -> Option<(LinkId, Outgoing)> {
        let session = self.session.as_mut().filter(|_| self.phase != Phase::Joining)?;
        session.beat = now;
        session.beats += 1;
        let message = Message::Heartbeat(Heartbeat { sequence: session.beats, sent: now.0 });
        Some((session.link, Outgoing { epoch: Epoch(0), term: self.term, message }))
    }

    pub(super) fn refuse_further(&self, why: &str, out: &mut Vec<Action>) {
        self.send(Epoch(0), Message::Refuse { reason: why.to_string() }, out);
    }

    pub(super) fn say_bye(&self, reason: ByeReason, out: &mut Vec<Action>) {
        if let Some(session) = &self.session {
            let (session, from) = (session.theirs.unwrap_or(0), session.hello.session);
            let why = String::new();
            self.send(Epoch(0), Message::Bye { reason, session, from, why }, out);
        }
    }

    pub(super) fn send(&self, epoch: Epoch, message: Message, out: &mut Vec<Action>) {
        if let Some(session) = &self.session {
            let frame = Outgoing { epoch, term: self.term, message };
            out.push(Action::Send { link: session.link, frame });
        }
    }
}
