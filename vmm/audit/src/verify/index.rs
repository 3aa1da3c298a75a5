//! Index of the terms and sessions of all logs, by number.

use std::collections::{HashMap, HashSet};

use super::{Breach, Place, breach};
use crate::entry::{Entry, Event, Won};
use crate::reader::Log;

/// An acknowledgement: term, session, epoch.
pub(super) type Ack = (u64, u64, u64);

/// A standby's part in a session.
#[derive(Clone, Copy, Debug)]
struct Accepted {
    log: usize,
    /// Whether the log continues after the session: then a record that it lacks was never written.
    over: bool,
    /// The last epoch acknowledged in the session.
    last_ack: Option<u64>,
}

/// The index over all logs.
pub(super) struct Index<'l> {
    pub(super) logs: &'l [Log],
    /// The acknowledgements sent, each with the first effect that its checkpoint does not contain.
    acks: HashMap<Ack, (Place, u64)>,
    /// For each session, the log of its primary.
    joined: HashMap<u64, usize>,
    accepted: HashMap<u64, Accepted>,
    gave_up: HashSet<u64>,
    won: Vec<Place>,
    /// For each log, the number of its virtual machine's history.
    history: Vec<usize>,
}

impl<'l> Index<'l> {
    pub(super) fn new(logs: &'l [Log]) -> Self {
        let mut index = Self {
            logs,
            acks: HashMap::new(),
            joined: HashMap::new(),
            accepted: HashMap::new(),
            gave_up: HashSet::new(),
            won: Vec::new(),
            history: (0..logs.len()).collect(),
        };
        for (log, of) in logs.iter().enumerate() {
            let mut current = index.recall(log);
            for (at, entry) in of.entries.iter().enumerate() {
                index.take(Place { log, at }, &entry.event, &mut current);
            }
        }
        index.relate();
        index
    }

    /// Restores, from a log's summary, the session that was running where rotation has cut the log.
    /// Returns that session if the log is a standby's.
    fn recall(&mut self, log: usize) -> Option<u64> {
        let before = &self.logs[log].header.before;
        self.gave_up.insert(before.gave_up);
        let session = before.session;
        if session == 0 {
            return None;
        }
        if before.leads {
            self.joined.insert(session, log);
            return None;
        }
        // The summary knows only the last acknowledgement of the session.
        let last_ack = (before.ack_session == session).then(|| before.ack_epoch.checked_sub(1));
        let accepted = Accepted { log, over: false, last_ack: last_ack.flatten() };
        self.accepted.insert(session, accepted);
        Some(session)
    }

    fn take(&mut self, place: Place, event: &Event, current: &mut Option<u64>) {
        match *event {
            Event::Joined { session, .. } => drop(self.joined.insert(session, place.log)),
            Event::Accepted { session, .. } => {
                self.close(current.replace(session));
                let accepted = Accepted { log: place.log, over: false, last_ack: None };
                self.accepted.insert(session, accepted);
            }
            Event::AckSent { epoch, term, session, next } => {
                self.acks.insert((term, session, epoch), (place, next));
                if let Some(accepted) = self.accepted.get_mut(&session) {
                    accepted.last_ack = accepted.last_ack.max(Some(epoch));
                }
            }
            Event::GaveUp { session } => {
                self.gave_up.insert(session);
                self.close(Some(session));
            }
            Event::Left { session } | Event::Discarded { session } => self.close(Some(session)),
            Event::TermWon { .. } => {
                self.won.push(place);
                self.close(*current);
            }
            Event::Ended => self.close(*current),
            _ => {}
        }
    }

    fn close(&mut self, session: Option<u64>) {
        if let Some(accepted) = session.and_then(|session| self.accepted.get_mut(&session)) {
            accepted.over = true;
        }
    }

    /// Unites histories: two logs of one session belong to one virtual machine.
    fn relate(&mut self) {
        for (session, accepted) in &self.accepted {
            let Some(primary) = self.joined.get(session) else { continue };
            let (from, to) = (self.history[accepted.log], self.history[*primary]);
            self.history
                .iter_mut()
                .filter(|history| **history == from)
                .for_each(|history| *history = to);
        }
    }

    pub(super) fn entry(&self, place: Place) -> &'l Entry {
        &self.logs[place.log].entries[place.at]
    }

    pub(super) fn event(&self, place: Place) -> Event {
        self.entry(place).event
    }

    pub(super) fn related(&self, one: usize, other: usize) -> bool {
        self.history[one] == self.history[other]
    }

    /// Whether two logs take their times from one clock.
    pub(super) fn same_clock(&self, one: usize, other: usize) -> bool {
        let boot = &self.logs[one].header.boot;
        !boot.is_empty() && *boot == self.logs[other].header.boot
    }

    /// The records of won terms, from an arbiter or by an operator's decision.
    pub(super) fn terms(&self) -> impl Iterator<Item = Place> + '_ {
        self.won.iter().copied()
    }

    /// The log of the primary whose checkpoint a takeover continued from.
    pub(super) fn takeover_parent(&self, event: &Event) -> Option<usize> {
        match event {
            Event::TermWon { how: Won::TakeOver, session, .. } => self.joined.get(session).copied(),
            _ => None,
        }
    }

    /// P2: each term is won once.
    pub(super) fn term_won_twice(&self) -> Option<Box<Breach>> {
        for (number, one) in self.won.iter().enumerate() {
            for other in &self.won[number + 1..] {
                let (Event::TermWon { term, .. }, Event::TermWon { term: again, .. }) =
                    (self.event(*one), self.event(*other))
                else {
                    continue;
                };
                if term == again && term > 0 && self.related(one.log, other.log) {
                    let what =
                        format!("expected that term {term} was won once, found it won twice");
                    return Some(breach("P2", what, self.logs, &[*one, *other]));
                }
            }
        }
        None
    }

    pub(super) fn ack(&self, ack: Ack) -> Option<(Place, u64)> {
        self.acks.get(&ack).copied()
    }

    /// Why no standby's log has an acknowledgement that a primary received. `Ok`: the standby's log
    /// ends before it, or is missing. `Err`: the log continues without it.
    pub(super) fn why_no_ack(&self, (_, session, epoch): Ack) -> Result<String, String> {
        let what = format!("the ACK of epoch {epoch}");
        match self.accepted.get(&session) {
            Some(accepted) if accepted.last_ack > Some(epoch) && !self.is_lost(accepted, epoch) => {
                Err(format!(
                    "the standby's log, {}, continues without {what}",
                    self.logs[accepted.log].name
                ))
            }
            Some(accepted) if self.is_lost(accepted, epoch) => {
                Ok(format!("{}: {what} was rotated away", self.logs[accepted.log].name))
            }
            _ => self.why_not(session, &what),
        }
    }

    /// Whether rotation has removed the acknowledgement of this epoch.
    fn is_lost(&self, accepted: &Accepted, epoch: u64) -> bool {
        let log = &self.logs[accepted.log];
        log.is_rotated() && epoch < log.header.before.ack_epoch
    }

    /// Whether rotation has removed an acknowledgement from the standby's log.
    pub(super) fn is_rotated_away(&self, (_, session, epoch): Ack) -> bool {
        self.accepted.get(&session).is_some_and(|accepted| self.is_lost(accepted, epoch))
    }

    /// Whether the session's standby announced that it gives the session up.
    pub(super) fn gave_up(&self, session: u64) -> bool {
        self.gave_up.contains(&session)
    }

    /// As [`why_no_ack`](Self::why_no_ack), for any other record of a standby.
    pub(super) fn why_not(&self, session: u64, what: &str) -> Result<String, String> {
        let Some(accepted) = self.accepted.get(&session) else {
            return Ok(format!(
                "no log of the standby of session {session:#x} was given, so that only the primary's log shows {what}"
            ));
        };
        let log = &self.logs[accepted.log];
        if accepted.over {
            return Err(format!("the standby's log, {}, continues without {what}", log.name));
        }
        Ok(format!("{}: ends before {what} of session {session:#x}", log.name))
    }
}
