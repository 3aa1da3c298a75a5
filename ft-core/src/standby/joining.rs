//! From a connection to the first byte of memory.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use io_gate::host::Epoch;

use super::{Action, Phase, PrimarySession, Report, Result, Staging, Standby};
use crate::handshake::Hello;
use crate::wire::{Message, Outgoing, PROTOCOL};
use crate::{LinkId, Time, deliberate, handshake};

impl Standby {
    pub(super) fn connected(
        &mut self,
        now: Time,
        link: LinkId,
        out: &mut Vec<Action>,
    ) -> Result<()> {
        if self.is_current(link) {
            return Err(self.illegal("connected", "the name of a link is never used twice"));
        }
        match self.phase {
            Phase::Waiting => {
                self.phase = Phase::Greeting;
                self.session = Some(PrimarySession::new(link, now));
            }
            // The primary may have been allowed to continue: its Hello will tell.
            Phase::WaitingForOperator if self.session.is_none() => {
                self.session = Some(PrimarySession::new(link, now));
            }
            // The same applies while this side is held back.
            Phase::Doubting
                if self.session.is_none()
                    && (self.is_held_back() || deliberate!(LetsInWhileAsking)) =>
            {
                self.session = Some(PrimarySession::new(link, now));
            }
            _ => {
                let reason = format!(
                    "this standby is {}: it accepts one primary at a time, try again later",
                    self.phase.name()
                );
                let message = Message::Refuse { reason: reason.clone() };
                let frame = Outgoing { epoch: Epoch(0), term: self.term, message };
                out.push(Action::Send { link, frame });
                out.push(Action::CloseLink { link, reason });
            }
        }
        Ok(())
    }

    pub(super) fn hello(&mut self, hello: Box<Hello>, out: &mut Vec<Action>) {
        if hello.term < self.term && !deliberate!(AcceptOlderTerm) {
            let why = format!(
                "term: the primary runs in term {}, but this standby knows of term {}: that primary has been \
                 replaced, stop it",
                hello.term, self.term
            );
            return self.break_off(why, out);
        }
        if let Some(leader) = &self.leader
            && hello.term == self.term
            && *leader != hello.holder
        {
            let why = format!(
                "term: the primary {} runs in term {}, but this standby knows {leader} as its holder: the arbiter's \
                 data went back to an earlier state, or there are two arbiters; stop the wrong primary",
                hello.holder, hello.term
            );
            return self.break_off(why, out);
        }
        if let Some(holding) = &self.holding {
            // A primary in a later term was allowed to continue without this checkpoint.
            let same = deliberate!(SameTermDiscards) && hello.term == holding.term;
            if hello.name != holding.name || hello.term <= holding.term && !same {
                let why = format!(
                    "this standby holds epoch {} of `{}` in term {} and {}",
                    holding.epoch,
                    holding.name,
                    holding.term,
                    match self.phase {
                        Phase::WaitingForOperator =>
                            "waits for its operator (`take-over` or `discard`)",
                        _ => "takes over when the missing resources are there",
                    }
                );
                return self.break_off(why, out);
            }
            (self.term, self.leader) = (hello.term, None);
            let reason = format!("the primary continues in term {}", hello.term);
            self.discard(reason, out);
            self.asking = None;
            self.phase = Phase::Greeting;
        }
        if let Some(session) = &mut self.session {
            session.hello = Some(hello.clone());
        }
        out.push(Action::Describe { hello });
    }

    pub(super) fn check_described(&self, event: &'static str) -> Result<()> {
        let asked = self.session.as_ref().is_some_and(|session| session.hello.is_some());
        if self.phase == Phase::Greeting && asked {
            Ok(())
        } else {
            Err(self.illegal(event, "no description was requested"))
        }
    }

    pub(super) fn described(&mut self, mut ours: Hello, out: &mut Vec<Action>) -> Result<()> {
        self.check_described("described")?;
        let Some(hello) = self.session.as_ref().and_then(|session| session.hello.clone()) else {
            return Ok(());
        };
        ours.protocol = PROTOCOL;
        ours.term = hello.term;
        ours.session = hello.session;
        ours.options = hello.options;
        let number = ours.standby_session;
        if let Some(lack) = self.lack.as_ref().filter(|lack| lack.blocks) {
            let why = format!("it could not continue the guest: {}", lack.reason);
            self.break_off(why, out);
            return Ok(());
        }
        if let Err(refusal) = handshake::compare(&hello, &ours) {
            self.break_off(refusal.to_string(), out);
            return Ok(());
        }
        if let Some(why) = self.disks_begin() {
            self.break_off(why, out);
            return Ok(());
        }
        self.term = hello.term;
        self.leader = hello.arbiter.exists().then(|| hello.holder.clone());
        if let Some(session) = &mut self.session {
            let slack = self.options.staging_slack;
            let images = handshake::total_size(&handshake::images_to_send(&hello, &ours));
            session.staging = Staging::new(hello.layout.clone(), images, slack, number);
            session.number = Some(number);
        }
        self.phase = Phase::Filling;
        self.reason = None;
        self.send(Message::Welcome(Box::new(ours)), out);
        if self.lack.is_some() {
            self.say_readiness(out);
        }
        out.push(Action::Report(Report::Filling { term: hello.term, release: hello.release }));
        Ok(())
    }
}
