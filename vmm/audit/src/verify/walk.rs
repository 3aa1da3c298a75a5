//! Walks one log from its beginning to its end, and checks for each effect whether it was allowed
//! when it was performed.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::index::Index;
use super::{Breach, Counts, Place, breach};
use crate::entry::{Event, Won};
use crate::summary::Summary;

/// A breach of a promise, which ends the walk.
pub(super) struct Stop(pub(super) Box<Breach>);

/// Missing evidence.
pub(super) struct Missing {
    pub(super) what: String,
    /// Whether rotation has removed it.
    pub(super) rotated: bool,
}

/// The results of a walk.
#[derive(Default)]
pub(super) struct Walked {
    /// Missing evidence.
    pub(super) missing: Vec<Missing>,
    /// For each performed effect, the place of its record.
    performed: BTreeMap<u64, usize>,
    /// For each term, the first effect performed in it.
    pub(super) first_performed: BTreeMap<u64, usize>,
    /// For each term, the last effect performed in it.
    pub(super) last_performed: BTreeMap<u64, usize>,
}

impl Walked {
    /// The first performed effect whose id is `next` or later.
    pub(super) fn first_performed_from(&self, next: u64) -> Option<usize> {
        self.performed.range(next..).next().map(|(_, at)| *at)
    }
}

#[derive(Clone, Copy)]
struct Effect {
    epoch: u64,
    /// Where the effect was staged or adopted.
    at: usize,
    adopted: bool,
    performed: Option<usize>,
    /// Where the effect was cancelled or returned.
    gone: Option<usize>,
}

/// The state of a walk.
pub(super) struct Walk<'i, 'l> {
    index: &'i Index<'l>,
    log: usize,
    at: usize,
    open: bool,
    /// Effects below this one have passed the open gate.
    passed: u64,
    term: u64,
    won: HashSet<u64>,
    /// The summary of the records that rotation has removed.
    before: Summary,
    /// For each acknowledged epoch, the place of its record.
    acked: BTreeMap<u64, usize>,
    sealed: HashMap<(u64, u64), usize>,
    /// A session whose standby may hold a checkpoint, and the place from which it may.
    armed: Option<(u64, usize)>,
    /// Whether a later term was won, which makes the standby's checkpoint unusable.
    right: bool,
    heard: HashSet<u64>,
    given_up: HashSet<u64>,
    fenced: Option<usize>,
    /// The last acknowledgement sent: its session and epoch.
    ack_sent: Option<(u64, u64)>,
    took_over: Option<usize>,
    /// The last effect staged.
    last: u64,
    effects: HashMap<u64, Effect>,
    withheld: HashSet<u64>,
    done: Walked,
}

type Step = Result<(), Stop>;

/// What has released an effect.
enum By {
    /// An acknowledgement that is in both sides' logs.
    Ack,
    /// The right to run alone.
    Right,
    /// An acknowledgement that rotation has removed, here or from the standby's log.
    Earlier,
}

impl<'i, 'l> Walk<'i, 'l> {
    pub(super) fn new(index: &'i Index<'l>, log: usize) -> Self {
        let before = index.logs[log].header.before;
        // The first remaining record stands for those that rotation has removed.
        let first = |true_then: bool| true_then.then_some(0);
        Self {
            index,
            log,
            at: 0,
            before,
            open: before.open,
            passed: before.passed,
            term: before.term,
            won: HashSet::from([0, before.term]),
            acked: BTreeMap::new(),
            sealed: HashMap::new(),
            armed: (before.armed != 0).then_some((before.armed, 0)),
            right: before.right,
            heard: HashSet::from([before.heard]),
            given_up: HashSet::from([before.gave_up]),
            fenced: first(before.fenced),
            ack_sent: before.ack_epoch.checked_sub(1).map(|epoch| (before.ack_session, epoch)),
            took_over: first(before.took_over),
            last: before.last,
            effects: HashMap::new(),
            withheld: HashSet::new(),
            done: Walked::default(),
        }
    }

    pub(super) fn run(mut self, counts: &mut Counts) -> Result<Walked, Stop> {
        let entries = &self.index.logs[self.log].entries;
        // The fence may know of a term before the log does: its winner informs both.
        for entry in entries {
            if let Event::TermWon { term, .. } = entry.event {
                self.won.insert(term);
            }
        }
        for (at, entry) in entries.iter().enumerate() {
            self.at = at;
            self.step(&entry.event, counts)?;
        }
        for (at, entry) in entries.iter().enumerate() {
            if let Event::Performing { id, term, .. } = entry.event
                && !self.withheld.contains(&id)
            {
                self.done.first_performed.entry(term).or_insert(at);
                self.done.last_performed.insert(term, at);
            }
        }
        Ok(self.done)
    }

    fn step(&mut self, event: &Event, counts: &mut Counts) -> Step {
        match *event {
            Event::TermWon { how, term, epoch, session, next } => {
                counts.takeovers += u64::from(how == Won::TakeOver);
                self.term_won(how, term, (session, epoch), next)
            }
            Event::Opened { term } => self.opened(term),
            Event::Held { next } => {
                self.open = false;
                self.passed = self.passed.max(next);
                Ok(())
            }
            Event::Sealed { epoch, session, .. } => {
                self.armed =
                    self.armed.filter(|(of, _)| *of == session).or(Some((session, self.at)));
                self.right = false;
                self.sealed.insert((session, epoch), self.at);
                Ok(())
            }
            Event::AckReceived { epoch, session, .. } => self.ack_received(session, epoch),
            Event::AckSent { epoch, session, .. } => self.ack_sent(session, epoch),
            Event::GaveUp { session } | Event::Discarded { session } => {
                self.given_up.insert(session);
                Ok(())
            }
            Event::HeardGivenUp { session } => {
                self.heard.insert(session);
                Ok(())
            }
            Event::Staged { id, epoch, previous, .. } => self.staged(id, epoch, previous),
            Event::Adopted { id, epoch, .. } => self.adopted(id, epoch),
            Event::Performing { id, epoch, term, replay, .. } => {
                self.performing(id, epoch, term, replay, counts)
            }
            Event::Withheld { id } => {
                self.withheld.insert(id);
                Ok(())
            }
            Event::Returned { id } | Event::Cancelled { id } => {
                if let Some(effect) = self.effects.get_mut(&id) {
                    effect.gone = Some(self.at);
                }
                Ok(())
            }
            Event::Fenced => {
                self.fenced = self.fenced.or(Some(self.at));
                Ok(())
            }
            Event::Joined { .. }
            | Event::Accepted { .. }
            | Event::Left { .. }
            | Event::Dropped { .. }
            | Event::Ended
            | Event::Panicked { .. } => Ok(()),
        }
    }

    /// Ends the walk with a breach, shown by this record and `others`.
    fn stop(&self, promise: &'static str, what: String, others: &[usize]) -> Stop {
        let here = Place { log: self.log, at: self.at };
        let others = others.iter().map(|at| Place { log: self.log, at: *at });
        let places: Vec<Place> = std::iter::once(here).chain(others).collect();
        Stop(breach(promise, what, self.index.logs, &places))
    }

    fn term_won(&mut self, how: Won, term: u64, from: (u64, u64), next: u64) -> Step {
        if term < self.term {
            let what = format!("expected a term after {}, found term {term} won", self.term);
            return Err(self.stop("P2", what, &[]));
        }
        self.term = term;
        self.right = true;
        if how == Won::TakeOver {
            let (session, epoch) = from;
            if self.ack_sent != Some(from) {
                let what = format!(
                    "expected a takeover from the last checkpoint acknowledged, found one from epoch {epoch} of session \
                     {session:#x}"
                );
                return Err(self.stop("P1", what, &[]));
            }
            if self.given_up.contains(&session) {
                let what = format!(
                    "expected no takeover from session {session:#x}, which was given up, found one"
                );
                return Err(self.stop("P2", what, &[]));
            }
            self.took_over = Some(self.at);
            self.last = next.saturating_sub(1);
        }
        Ok(())
    }

    /// P1: the gate must not open while a standby may hold a checkpoint that it can still use.
    fn opened(&mut self, term: u64) -> Step {
        if !self.won.contains(&term) || term < self.term {
            let what =
                format!("expected the gate to open in term {}, found term {term}", self.term);
            return Err(self.stop("P2", what, &[]));
        }
        if let Some((session, since)) = self.armed.take().filter(|_| !self.right) {
            let what = "that it gave its checkpoint up";
            if !self.heard.contains(&session) {
                let what = format!(
                    "expected the gate to hold while the standby of session {session:#x} may take over, until a later term \
                     is won or the standby gives its checkpoint up; found it open"
                );
                return Err(self.stop("P1", what, &[since]));
            }
            if !self.index.gave_up(session) {
                match self.index.why_not(session, what) {
                    Ok(what) => self.done.missing.push(Missing { what, rotated: false }),
                    Err(found) => {
                        let what = format!("expected the standby's record {what}, found {found}");
                        return Err(self.stop("P1", what, &[since]));
                    }
                }
            }
        }
        self.open = true;
        Ok(())
    }

    fn ack_received(&mut self, session: u64, epoch: u64) -> Step {
        if self.sealed.remove(&(session, epoch)).is_none() && epoch >= self.before.sealed {
            let what = format!(
                "expected an ACK of an epoch that was sealed for session {session:#x} and not acknowledged yet, found one \
                 of epoch {epoch}"
            );
            return Err(self.stop("P1", what, &[]));
        }
        self.acked.insert(epoch, self.at);
        Ok(())
    }

    fn ack_sent(&mut self, session: u64, epoch: u64) -> Step {
        if let Some(since) = self.took_over {
            let what = "expected no ACK from a standby that has taken over, found one".to_owned();
            return Err(self.stop("P2", what, &[since]));
        }
        let follows = self.ack_sent.is_none_or(|(of, last)| of != session || last < epoch);
        if !follows {
            let what = format!("expected an ACK of a later epoch, found one of epoch {epoch}");
            return Err(self.stop("P1", what, &[]));
        }
        self.ack_sent = Some((session, epoch));
        Ok(())
    }

    fn staged(&mut self, id: u64, epoch: u64, previous: u64) -> Step {
        let last = std::mem::replace(&mut self.last, id);
        if previous != last || id <= last {
            let what = format!(
                "expected the effect that was staged after {last}, found {id}, which followed {previous}: an effect \
                 between them is not recorded"
            );
            return Err(self.stop("P1", what, &[]));
        }
        self.know(id, epoch, false);
        Ok(())
    }

    fn adopted(&mut self, id: u64, epoch: u64) -> Step {
        if self.took_over.is_none() || id > self.last {
            let what = format!("expected effects taken over in a takeover only, found effect {id}");
            return Err(self.stop("P2", what, &[]));
        }
        self.know(id, epoch, true);
        Ok(())
    }

    fn know(&mut self, id: u64, epoch: u64, adopted: bool) {
        let effect = Effect { epoch, at: self.at, adopted, performed: None, gone: None };
        self.effects.insert(id, effect);
    }

    fn performing(
        &mut self,
        id: u64,
        epoch: u64,
        term: u64,
        replay: bool,
        counts: &mut Counts,
    ) -> Step {
        if let Some(fenced) = self.fenced {
            let what =
                format!("expected nothing after the right was lost, found effect {id} performed");
            return Err(self.stop("P2", what, &[fenced]));
        }
        if !self.won.contains(&term) || term < self.term {
            let what = format!(
                "expected effect {id} to be performed in the term that this side holds, {}, found it performed in term \
                 {term}",
                self.term
            );
            return Err(self.stop("P2", what, &[]));
        }
        if id <= self.before.last && !self.effects.contains_key(&id) {
            // Rotation has removed the record that staged or adopted it.
            self.know(id, epoch, replay);
        }
        let Some(effect) = self.effects.get(&id).copied() else {
            let what = format!(
                "expected that effect {id} was staged or taken over before it was performed, found no record of it"
            );
            return Err(self.stop("P1", what, &[]));
        };
        if let Some(first) = effect.performed {
            let what =
                format!("expected effect {id} to be performed once, found it performed twice");
            return Err(self.stop("P2", what, &[first]));
        }
        if let Some(gone) = effect.gone {
            let what = format!("expected effect {id} to be performed no more, found it performed");
            return Err(self.stop("P1", what, &[gone]));
        }
        if (epoch, replay) != (effect.epoch, effect.adopted) {
            let what = format!(
                "expected that effect {id} is performed as it was staged, found another kind performed"
            );
            return Err(self.stop("P2", what, &[effect.at]));
        }
        match self.let_out(id, effect)? {
            By::Ack => counts.after_ack += 1,
            By::Right => counts.alone += 1,
            By::Earlier => counts.earlier += 1,
        }
        counts.performed += 1;
        counts.replayed += u64::from(replay);
        if let Some(effect) = self.effects.get_mut(&id) {
            effect.performed = Some(self.at);
        }
        self.done.performed.insert(id, self.at);
        Ok(())
    }

    /// P1: only an acknowledgement or the right to run alone releases an effect.
    fn let_out(&mut self, id: u64, effect: Effect) -> Result<By, Stop> {
        let alone = self.open || id < self.passed;
        // The first acknowledgement that covers the effect has released it.
        let Some((epoch, at)) = self.acked.range(effect.epoch..).next().map(|(e, a)| (*e, *a))
        else {
            if alone {
                return Ok(By::Right);
            }
            if effect.epoch < self.before.acked {
                return Ok(By::Earlier);
            }
            let what = format!(
                "expected an ACK of epoch {} or a later one before effect {id} was performed, found none",
                effect.epoch
            );
            return Err(self.stop("P1", what, &[effect.at]));
        };
        let Event::AckReceived { term, session, .. } =
            self.index.event(Place { log: self.log, at })
        else {
            unreachable!("only acknowledgements are put there")
        };
        let ack = (term, session, epoch);
        match self.index.ack(ack) {
            Some((_, next)) if id < next => Ok(By::Ack),
            _ if alone => Ok(By::Right),
            Some((sent, next)) => {
                let what = format!(
                    "expected the acknowledged checkpoint to contain effect {id}, found that it contains the effects \
                     below {next}"
                );
                let Stop(mut breach) = self.stop("P1", what, &[at]);
                let log = self.index.logs[sent.log].name.clone();
                breach.records.push((log, *self.index.entry(sent)));
                Err(Stop(breach))
            }
            None => match self.index.why_no_ack(ack) {
                Ok(what) => {
                    let rotated = self.index.is_rotated_away(ack);
                    self.done.missing.push(Missing { what, rotated });
                    Ok(if rotated { By::Earlier } else { By::Ack })
                }
                Err(found) => {
                    let what =
                        format!("expected the standby's record of this ACK, found that {found}");
                    Err(self.stop("P1", what, &[at]))
                }
            },
        }
    }
}
