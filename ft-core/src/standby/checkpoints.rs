//! A checkpoint that has come whole is checked, acknowledged and compared (P4, P8).

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use io_gate::host::Epoch;

use super::{Action, Checkpoint, Holding, Phase, Report, Result, Standby};
use crate::deliberate;
use crate::wire::{Frame, Hashes, Message, Outgoing, Verified};

impl Standby {
    pub(super) fn check_not_checking(&self, frame: &Frame) -> Result<()> {
        let checking = self.session.as_ref().is_some_and(|session| session.checking.is_some());
        let data = matches!(
            frame.message,
            Message::Image(_)
                | Message::Bulk(_)
                | Message::Pages(_)
                | Message::State(_)
                | Message::End(_)
        );
        if checking && data {
            return Err(self.illegal("frame", "a Check is answered before more data is passed in"));
        }
        Ok(())
    }

    pub(super) fn checking(&self, event: &'static str, epoch: Epoch) -> Result<Arc<Checkpoint>> {
        let checking = self.session.as_ref().and_then(|session| session.checking.clone());
        checking
            .filter(|checkpoint| checkpoint.epoch() == epoch)
            .ok_or_else(|| self.illegal(event, "this checkpoint is not under check"))
    }

    /// P4: acknowledges a checkpoint that came whole, was verified, and can be applied. No other
    /// checkpoint is ever applied.
    pub(super) fn applicable(&mut self, epoch: Epoch, out: &mut Vec<Action>) -> Result<()> {
        let checkpoint = self.checking("applicable", epoch)?;
        debug_assert!(matches!(self.phase, Phase::Filling | Phase::Ready), "{:?}", self.phase);
        let Some(session) = &mut self.session else { return Ok(()) };
        let Some(hello) = &session.hello else { return Ok(()) };
        let (name, term, link) = (hello.name.clone(), hello.term, session.link);
        session.checking = None;
        session.to_verify = checkpoint.hashes().map(|hashes| (epoch, hashes));
        if self.phase == Phase::Filling {
            self.phase = Phase::Ready;
            out.push(Action::Report(Report::Ready { epoch }));
        }
        self.holding = Some(Holding { name, term, epoch });
        let frame = Outgoing { epoch, term, message: Message::Ack };
        if !deliberate!(AckBeforeCheck) {
            out.push(Action::Send { link, frame });
        }
        out.push(Action::Apply(checkpoint));
        Ok(())
    }

    pub(super) fn hashed(
        &mut self,
        epoch: Epoch,
        standby: Hashes,
        out: &mut Vec<Action>,
    ) -> Result<()> {
        let awaited = self.session.as_ref().and_then(|session| session.to_verify);
        let Some((_, primary)) = awaited.filter(|(awaited, _)| *awaited == epoch) else {
            return Err(self.illegal("hashed", "no hashes of this epoch are awaited"));
        };
        let verified = Verified { agree: primary == standby, primary, standby };
        if let Some(session) = &mut self.session {
            session.to_verify = None;
            let message = Message::Verified(verified);
            let frame = Outgoing { epoch, term: self.term, message };
            out.push(Action::Send { link: session.link, frame });
        }
        out.push(Action::Report(Report::Verified { epoch, verified }));
        if !verified.agree {
            // P8: the held checkpoint differs from the guest.
            self.give_up(
                format!(
                    "epoch {epoch} is not the same on both sides: primary {primary}, standby {standby}"
                ),
                out,
            );
        }
        Ok(())
    }

    /// P8: a checkpoint whose hashes cannot be compared may differ.
    pub(super) fn cannot_hash(
        &mut self,
        epoch: Epoch,
        reason: &str,
        out: &mut Vec<Action>,
    ) -> Result<()> {
        let awaited = self.session.as_ref().and_then(|session| session.to_verify);
        if awaited.is_none_or(|(awaited, _)| awaited != epoch) {
            return Err(self.illegal("cannot hash", "no hashes of this epoch are awaited"));
        }
        self.give_up(format!("epoch {epoch} cannot be compared: {reason}"), out);
        Ok(())
    }
}
