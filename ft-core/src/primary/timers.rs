//! The deadlines of the primary, and what it does at each.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::{Action, Phase, Primary, StandbySession};
use crate::{Time, deliberate};

impl Primary {
    /// When the next [`Event::Tick`] is due. An earlier tick does no harm.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        let session = self.session.as_ref().map(|session| {
            let silent = session.heard + self.patience();
            let beat = (self.phase != Phase::Joining)
                .then(|| session.beat + self.options.heartbeat_interval);
            [beat, session.detach_by].into_iter().flatten().fold(silent, Time::min)
        });
        let ack = self.in_flight.front().map(|(_, sealed)| *sealed + self.options.ack_timeout);
        let retry = self.asking.as_ref().and_then(|asking| asking.retry);
        let search = self.search.filter(|_| self.may_look());
        [session, ack, self.durable_deadline(), retry, search].into_iter().flatten().min()
    }

    pub(super) fn tick(&mut self, now: Time, out: &mut Vec<Action>) {
        if self.is_silent(now) && !deliberate!(SilentStandby) {
            self.lose_silent(now, out);
        }
        let overdue = |session: &StandbySession| session.detach_by.is_some_and(|by| by <= now);
        if self.session.as_ref().is_some_and(overdue) {
            if deliberate!(DetachTimesOut) {
                self.close(String::new(), out);
                return self.go_alone(now, true, String::new(), out);
            }
            self.lose(now, "the standby does not discard its checkpoint".to_string(), out);
        }
        self.give_up_waiting(now, out);
        self.give_sign_of_life(now, out);
        if let Some(asking) = &mut self.asking
            && asking.retry.is_some_and(|time| time <= now)
        {
            asking.retry = None;
            out.push(Action::AskArbiter { term: self.term.next(), why: asking.why.clone() });
        }
        self.look_for_standby(now, out);
    }

    /// P7: a standby that is alive and does not acknowledge would delay output for ever. It may
    /// have taken the checkpoint, so the arbiter decides.
    fn give_up_waiting(&mut self, now: Time, out: &mut Vec<Action>) {
        let limit = self.options.ack_timeout;
        if self.durable_deadline().is_some_and(|due| due <= now) {
            let why = format!("the standby's disks have not been durable for {limit:?}");
            return self.break_off(now, why, out);
        }
        let Some((epoch, mut sealed)) = self.in_flight.front().copied() else { return };
        if deliberate!(LastSealCounts) {
            sealed = self.in_flight.back().map_or(sealed, |(_, last)| *last);
        }
        if now.since(sealed) >= limit && !deliberate!(WaitForAck) {
            let why = format!("epoch {epoch} has not been acknowledged for {limit:?}");
            self.break_off(now, why, out);
        }
    }

    fn give_sign_of_life(&mut self, now: Time, out: &mut Vec<Action>) {
        let interval = self.options.heartbeat_interval;
        if self.session.as_ref().is_some_and(|session| session.beat + interval <= now)
            && let Some((link, frame)) = self.sign_of_life(now)
        {
            out.push(Action::Send { link, frame });
        }
    }
}
