//! The summary of all records before a file. The file's header holds it, so that a verifier can
//! continue from it after rotation has removed those records.

use super::entry::{Entry, Event, Won};

/// The state of one side at a point of its log. The summary counts epochs from 1; 0 means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The number of the next record.
    pub next: u64,
    /// The last term won.
    pub term: u64,
    /// The last effect staged.
    pub last: u64,
    /// Effects below this one have passed the open gate.
    pub passed: u64,
    /// One more than the last epoch whose acknowledgement was received.
    pub acked: u64,
    /// One more than the last epoch sealed.
    pub sealed: u64,
    /// The session whose standby may hold a checkpoint, or 0.
    pub armed: u64,
    /// The last session that began.
    pub session: u64,
    /// The last session whose standby reported that it gives up.
    pub heard: u64,
    /// The last session that this standby gave up.
    pub gave_up: u64,
    /// The session of the last acknowledgement sent.
    pub ack_session: u64,
    /// One more than the epoch of the last acknowledgement sent.
    pub ack_epoch: u64,
    /// Whether this side is the primary of the last session.
    pub leads: bool,
    /// Whether the gate is open.
    pub open: bool,
    /// Whether this side has won a term since the session was armed.
    pub right: bool,
    /// Whether this side has lost the right to perform.
    pub fenced: bool,
    /// Whether this standby has taken over.
    pub took_over: bool,
}

impl Summary {
    /// Number of integers in the encoded summary.
    pub(super) const NUMBERS: usize = 13;

    /// Updates the summary with a record.
    pub fn take(&mut self, entry: &Entry) {
        self.next = entry.sequence + 1;
        match entry.event {
            Event::TermWon { how, term, next, .. } => {
                self.term = term;
                self.right = true;
                if how == Won::TakeOver {
                    self.took_over = true;
                    self.last = next.saturating_sub(1);
                }
            }
            Event::Opened { .. } => (self.open, self.armed) = (true, 0),
            Event::Held { next } => (self.open, self.passed) = (false, self.passed.max(next)),
            Event::Joined { session, .. } => (self.session, self.leads) = (session, true),
            Event::Accepted { session, .. } => (self.session, self.leads) = (session, false),
            Event::Sealed { epoch, session, .. } => {
                (self.armed, self.right, self.sealed) = (session, false, epoch + 1);
            }
            Event::AckReceived { epoch, .. } => self.acked = epoch + 1,
            Event::AckSent { epoch, session, .. } => {
                (self.ack_session, self.ack_epoch) = (session, epoch + 1);
            }
            Event::HeardGivenUp { session } => self.heard = session,
            Event::GaveUp { session } => self.gave_up = session,
            Event::Staged { id, .. } => self.last = id,
            Event::Fenced => self.fenced = true,
            _ => {}
        }
    }

    pub(super) fn to_numbers(self) -> [u64; Self::NUMBERS] {
        let flags = [self.leads, self.open, self.right, self.fenced, self.took_over];
        let flags = flags.iter().rev().fold(0, |bits, flag| bits << 1 | u64::from(*flag));
        [
            self.next,
            self.term,
            self.last,
            self.passed,
            self.acked,
            self.sealed,
            self.armed,
            self.session,
            self.heard,
            self.gave_up,
            self.ack_session,
            self.ack_epoch,
            flags,
        ]
    }

    pub(super) fn from_numbers(numbers: [u64; Self::NUMBERS]) -> Self {
        let [
            next,
            term,
            last,
            passed,
            acked,
            sealed,
            armed,
            session,
            heard,
            gave_up,
            ack_session,
            ack_epoch,
            flags,
        ] = numbers;
        let flag = |bit: u32| flags >> bit & 1 != 0;
        let (leads, open, right) = (flag(0), flag(1), flag(2));
        let (fenced, took_over) = (flag(3), flag(4));
        Self {
            next,
            term,
            last,
            passed,
            acked,
            sealed,
            armed,
            session,
            heard,
            gave_up,
            ack_session,
            ack_epoch,
            leads,
            open,
            right,
            fenced,
            took_over,
        }
    }
}
