//! From a connection to the first sealed checkpoint.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use io_gate::host::Epoch;

use super::{Action, Phase, Primary, Report, Result, StandbySession};
use crate::handshake::Hello;
use crate::wire::{Message, PROTOCOL};
use crate::{LinkId, Time, deliberate, handshake};

impl Primary {
    pub(super) fn connected(
        &mut self,
        now: Time,
        link: LinkId,
        mut hello: Box<Hello>,
        out: &mut Vec<Action>,
    ) -> Result<()> {
        if self.phase != Phase::Alone {
            return Err(self.illegal_named("standby connected", "one standby at a time"));
        }
        hello.protocol = PROTOCOL;
        hello.term = self.term;
        // An unrequested connection is welcome too; one that the operator no longer wants is not.
        let unwanted = core::mem::take(&mut self.trying)
            && self.search.is_none()
            && !deliberate!(UnwantedJoined);
        if unwanted || self.stalled.is_some() {
            let reason = match &self.stalled {
                Some(reason) => {
                    format!("a stalled machine does not connect to a standby: {reason}")
                }
                None => "the operator has ended protection".to_string(),
            };
            out.push(Action::CloseLink { link, reason });
            return Ok(());
        }
        self.phase = Phase::Joining;
        if !deliberate!(ReasonKept) {
            self.reason = None;
            self.refusal = None;
        }
        self.session = Some(StandbySession {
            link,
            hello: hello.clone(),
            heard: now,
            beat: now,
            beats: 0,
            detach_by: None,
            theirs: None,
        });
        self.send(Epoch(0), Message::Hello(hello), out);
        Ok(())
    }

    pub(super) fn welcomed(&mut self, now: Time, theirs: Hello, out: &mut Vec<Action>) {
        let Some(session) = &mut self.session else { return };
        if theirs.session != session.hello.session && !deliberate!(AnyWelcome) {
            let (expected, found) = (session.hello.session, theirs.session);
            let why =
                format!("expected an answer for session {expected:#x}, found one for {found:#x}");
            return self.break_off(now, why, out);
        }
        if let Err(refusal) = handshake::compare(&session.hello, &theirs) {
            return self.unfit(now, refusal.to_string(), out);
        }
        let (link, options) = (session.link, session.hello.options);
        let images = handshake::images_to_send(&session.hello, &theirs);
        let number = theirs.standby_session;
        session.theirs = Some(number);
        self.phase = Phase::Copying;
        out.push(Action::Report(Report::Joined { release: theirs.release }));
        out.push(Action::StartPrecopy { link, options, session: number, images });
    }

    pub(super) fn precopy_done(&mut self, out: &mut Vec<Action>) -> Result<()> {
        let Some(session) = self.session.as_ref().filter(|_| self.phase == Phase::Copying) else {
            return Err(self.illegal_named("pre-copy done", "no pre-copy is in progress"));
        };
        let link = session.link;
        self.phase = Phase::Sealing;
        // From here on effects belong to an epoch that a standby will acknowledge.
        if !deliberate!(NoHold) {
            out.push(Action::Hold);
        }
        out.push(Action::SealFirst { link });
        Ok(())
    }

    pub(super) fn on_sealed(&mut self, now: Time, link: LinkId, epoch: Epoch) -> Result<()> {
        if !self.is_current(link) && !deliberate!(SealedForAnother) {
            // P4: memory that was marked clean for an ended session would be missing in the next
            // one.
            return Err(self.illegal_named("sealed", "the session of this epoch has ended"));
        }
        if self.phase != Phase::Sealing && !self.may_seal() {
            return Err(self.illegal_named(
                "sealed",
                "an epoch is sealed only with a standby, and while few enough are unacknowledged",
            ));
        }
        let follows = match self.sealed {
            // The gate counts epochs across sessions: epochs sealed but not sent leave a gap.
            Some(last) if self.phase == Phase::Sealing => epoch > last,
            Some(last) => epoch == last.next(),
            None => true,
        };
        if !follows {
            return Err(self.illegal_named("sealed", "epochs are sealed in order, without a gap"));
        }
        self.sealed = Some(epoch);
        self.in_flight.push_back((epoch, now));
        if self.phase == Phase::Sealing {
            self.phase = Phase::Arming;
            // The patience is shorter from now on, so silence is counted from now.
            if let Some(session) = &mut self.session {
                session.heard = session.heard.max(now);
            }
        }
        Ok(())
    }
}
