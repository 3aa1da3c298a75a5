//! The operator's orders.

use alloc::string::ToString;
use alloc::vec::Vec;

use super::{Action, Phase, Result, Standby};

impl Standby {
    pub(super) fn operator_take_over(&mut self, out: &mut Vec<Action>) -> Result<()> {
        match self.phase {
            Phase::Ready if !self.may_take_over() => Err(self.illegal(
                "operator: take over",
                "a standby whose disks are in the set: its status says how far they are",
            )),
            Phase::Ready | Phase::WaitingForOperator
                if self.lack.as_ref().is_some_and(|lack| lack.blocks) =>
            {
                Err(self.illegal(
                    "operator: take over",
                    "a standby that has all that the guest needs: its status names what is missing",
                ))
            }
            Phase::WaitingForOperator => {
                self.take_over(out);
                Ok(())
            }
            // A planned move: the arbiter makes the primary stop, as it would after a failure. The
            // link stays up, so that the primary does not ask at the same time. From now on nothing
            // is acknowledged: what is held when the term is won must be the last checkpoint.
            Phase::Ready if self.options.arbiter => {
                if let Some(session) = &mut self.session {
                    session.checking = None;
                    session.to_verify = None;
                }
                self.doubt("the operator has ordered a takeover".to_string(), out);
                Ok(())
            }
            Phase::Doubting => Err(self.illegal(
                "operator: take over",
                "no takeover in progress: this side has already asked the arbiter for the next term",
            )),
            _ => Err(self.illegal(
                "operator: take over",
                "only a standby with a checkpoint takes over; without an arbiter, only when the primary is out of \
                 reach",
            )),
        }
    }

    pub(super) fn operator_discard(&mut self, out: &mut Vec<Action>) -> Result<()> {
        if self.phase != Phase::WaitingForOperator {
            return Err(self.illegal("operator: discard", "no checkpoint waits for an operator"));
        }
        self.close("the operator discards the checkpoint", out);
        self.discard("the operator has discarded the checkpoint".to_string(), out);
        self.phase = Phase::Waiting;
        Ok(())
    }
}
