//! The loss of a session, which ends without a Bye from the primary.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Action, Phase, Report, Standby};
use crate::wire::{Message, WireError};

impl Standby {
    pub(super) fn garbled(&mut self, error: &WireError, out: &mut Vec<Action>) {
        self.break_off(format!("from the primary: {error}"), out);
    }

    /// Tells the primary why, and continues as if the link was lost.
    pub(super) fn break_off(&mut self, why: String, out: &mut Vec<Action>) {
        self.send(Message::Refuse { reason: why.clone() }, out);
        self.lose(why, out);
    }

    pub(super) fn lose(&mut self, why: String, out: &mut Vec<Action>) {
        self.close(&why, out);
        out.push(Action::Report(Report::LinkLost { reason: why.clone() }));
        match self.phase {
            Phase::Ready if self.may_take_over() => self.doubt(why, out),
            Phase::Ready | Phase::Filling => {
                self.discard(why, out);
                self.phase = Phase::Waiting;
            }
            Phase::Greeting => {
                self.reason = Some(why);
                self.phase = Phase::Waiting;
            }
            // A side that waits has nothing to lose. After a question to the arbiter or the
            // operator, the answer decides, and not the link.
            _ => {}
        }
    }
}
