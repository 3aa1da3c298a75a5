//! The connection with one primary: who is on it, how long it may be silent, and what is sent.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use io_gate::host::Epoch;

use super::{Action, Checkpoint, Phase, Staging, Standby};
use crate::handshake::Hello;
use crate::wire::{ByeReason, Hashes, Heartbeat, Message, Outgoing};
use crate::{LinkId, Time, deliberate};

/// The connection with one primary.
#[derive(Debug)]
pub(super) struct PrimarySession {
    pub(super) link: LinkId,
    pub(super) heard: Time,
    /// The last unrequested heartbeat, and the number of them.
    pub(super) beat: Time,
    pub(super) beats: u64,
    /// The primary's description of itself.
    pub(super) hello: Option<Box<Hello>>,
    /// This side's number for this session, once it was sent.
    pub(super) number: Option<u64>,
    pub(super) staging: Staging,
    /// A checkpoint that the driver is checking for applicability.
    pub(super) checking: Option<Arc<Checkpoint>>,
    /// The hashes of the primary's machine, while the driver still has to hash its own.
    pub(super) to_verify: Option<(Epoch, Hashes)>,
}

impl PrimarySession {
    pub(super) fn new(link: LinkId, now: Time) -> Self {
        Self {
            link,
            heard: now,
            beat: now,
            beats: 0,
            hello: None,
            number: None,
            staging: Staging::default(),
            checking: None,
            to_verify: None,
        }
    }
}

impl Standby {
    /// A link that this machine has closed may still deliver frames: they are ignored.
    pub(super) fn is_current(&self, link: LinkId) -> bool {
        self.session.as_ref().is_some_and(|session| session.link == link)
    }

    pub(super) fn patience(&self) -> Duration {
        match self.phase {
            Phase::Ready | Phase::Doubting if !deliberate!(SlowSuspicion) => {
                self.options.heartbeat_timeout
            }
            _ => self.options.setup_timeout,
        }
    }

    /// This side's number for the session; 0 before it was sent.
    pub(super) fn number(&self) -> u64 {
        self.session.as_ref().and_then(|session| session.number).unwrap_or(0)
    }

    /// The primary's number for the session; 0 before it has sent it.
    pub(super) fn theirs(&self) -> u64 {
        let hello = self.session.as_ref().and_then(|session| session.hello.as_ref());
        hello.map_or(0, |hello| hello.session)
    }

    /// The heartbeat to send while the driver is busy with an action for longer than the heartbeat
    /// interval and passes no events. `None` outside a session that a primary relies on.
    pub fn sign_of_life(&mut self, now: Time) -> Option<(LinkId, Outgoing)> {
        if !matches!(self.phase, Phase::Filling | Phase::Ready | Phase::Doubting) {
            return None;
        }
        let session = self.session.as_mut()?;
        let term = session.hello.as_ref()?.term;
        session.beats += 1;
        let message = Message::Heartbeat(Heartbeat { sequence: session.beats, sent: now.0 });
        Some((session.link, Outgoing { epoch: Epoch(0), term, message }))
    }

    pub(super) fn say_readiness(&self, out: &mut Vec<Action>) {
        let (session, from) = (self.theirs(), self.number());
        let lack = self.lack.as_ref().map(|lack| lack.reason.clone());
        self.send(Message::Readiness { lack, session, from }, out);
    }

    /// Before the primary has named its session, there is no session to leave: the number is then
    /// 0.
    pub(super) fn say_bye(&self, reason: ByeReason, why: String, out: &mut Vec<Action>) {
        let (session, from) = (self.theirs(), self.number());
        self.send(Message::Bye { reason, session, from, why }, out);
    }

    pub(super) fn send(&self, message: Message, out: &mut Vec<Action>) {
        if let Some(session) = &self.session {
            // Before the primary has sent its term, it does not check ours.
            let term = session.hello.as_ref().map_or(self.term, |hello| hello.term);
            let frame = Outgoing { epoch: Epoch(0), term, message };
            out.push(Action::Send { link: session.link, frame });
        }
    }
}
