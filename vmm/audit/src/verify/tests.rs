//! The verifier on generated histories of several hosts: it proves each true one and finds each
//! breach.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use io_gate_host::Op;

use super::super::entry::Won;
use super::super::format::{Header, Side};
use super::super::summary::Summary;
use super::*;

/// Number of histories of each kind.
const SEEDS: u64 = 300;

/// A generator of true histories, recorded as the product records them.
struct World {
    random: fastrand::Rng,
    clock: u64,
    logs: Vec<Log>,
    term: u64,
    epoch: u64,
    session: u64,
    /// The host that runs the guest.
    active: usize,
    next: u64,
    /// For each log, the last effect staged.
    last: Vec<u64>,
    /// Effects that are staged and not performed: id, epoch, and whether the effect was taken over.
    waiting: Vec<(u64, u64, bool)>,
}

impl World {
    fn begin(seed: u64) -> Self {
        let mut world = Self {
            random: fastrand::Rng::with_seed(seed),
            clock: 1000,
            logs: Vec::new(),
            term: 1,
            epoch: 0,
            session: 0x70,
            active: 0,
            next: 1,
            last: Vec::new(),
            waiting: Vec::new(),
        };
        world.host(Side::Primary);
        let (how, term) = (Won::Begin, 1);
        world.tell(0, Event::TermWon { how, term, epoch: 0, session: 0, next: 1 });
        world.tell(0, Event::Opened { term });
        world
    }

    /// Generates a history with one session for each of `ends`.
    fn live(seed: u64, ends: &[End]) -> Vec<Log> {
        let mut world = Self::begin(seed);
        for end in ends {
            world.alone();
            world.session(*end);
        }
        world.alone();
        let active = world.active;
        world.tell(active, Event::Ended);
        world.logs
    }

    fn host(&mut self, side: Side) -> usize {
        let number = self.logs.len();
        let header = Header {
            vm: "vm".to_owned(),
            holder: format!("host {number}"),
            boot: format!("boot {}", number % 2),
            side,
            number: 0,
            realtime: 0,
            monotonic: 0,
            before: Summary::default(),
        };
        let name = format!("log {number}");
        self.logs.push(Log { name, header, entries: Vec::new(), hole: None });
        self.last.push(0);
        number
    }

    fn tell(&mut self, log: usize, event: Event) {
        self.clock += self.random.u64(1..50);
        let entries = &mut self.logs[log].entries;
        entries.push(Entry { sequence: entries.len() as u64, time: self.clock, event });
    }

    fn stage(&mut self) {
        let (active, epoch) = (self.active, self.epoch);
        // Skip some ids: inputs have ids, too.
        let id = self.next + self.random.u64(0..3);
        self.next = id + 1;
        let previous = std::mem::replace(&mut self.last[active], id);
        self.tell(active, Event::Staged { id, slot: 1, op: Op::BlockWrite, epoch, previous });
        self.waiting.push((id, epoch, false));
    }

    /// Performs the effects up to epoch `upto`, except for the last `leave`.
    fn perform(&mut self, upto: u64, leave: usize) {
        let count = self.waiting.iter().filter(|(_, epoch, _)| *epoch <= upto).count();
        let now: Vec<_> = self.waiting.drain(..count.saturating_sub(leave)).collect();
        for (id, epoch, replay) in now {
            let (slot, op, term) = (1, Op::BlockWrite, self.term);
            self.tell(self.active, Event::Performing { id, slot, op, epoch, term, replay });
        }
    }

    fn alone(&mut self) {
        for _ in 0..self.random.u64(1..4) {
            self.stage();
            self.perform(u64::MAX, 0);
        }
    }

    fn session(&mut self, end: End) {
        let (active, term) = (self.active, self.term);
        let standby = self.host(Side::Standby);
        self.session += 1;
        let session = self.session;
        self.tell(active, Event::Joined { term, session });
        self.tell(standby, Event::Accepted { term, session });
        self.alone();
        self.stage();
        self.tell(active, Event::Held { next: self.next });
        let mut held = (0, 0);
        for round in 0..self.random.u64(2..8) {
            for _ in 0..self.random.u64(1..4) {
                self.stage();
            }
            let (epoch, next) = (self.epoch, self.next);
            self.epoch += 1;
            self.tell(active, Event::Sealed { epoch, term, session, next });
            // The guest stages an effect while the checkpoint is being sent.
            self.stage();
            self.tell(standby, Event::AckSent { epoch, term, session, next });
            held = (epoch, next);
            // The last acknowledgement may be lost.
            if round > 0 && end == End::TakeOver && self.random.bool() {
                break;
            }
            self.tell(active, Event::AckReceived { epoch, term, session });
            let leave = self.random.usize(0..2);
            self.perform(epoch, leave);
        }
        match end {
            End::TakeOver => self.take_over(standby, held),
            End::Alone => {
                self.term += 1;
                let (how, term) = (Won::Alone, self.term);
                self.tell(active, Event::Left { session });
                let event = Event::TermWon { how, term, epoch: 0, session: 0, next: 0 };
                self.tell(active, event);
                self.tell(active, Event::Opened { term });
                self.perform(u64::MAX, 0);
            }
            End::GivenUp => {
                self.tell(standby, Event::GaveUp { session });
                self.tell(standby, Event::Left { session });
                self.tell(standby, Event::Ended);
                self.tell(active, Event::HeardGivenUp { session });
                self.tell(active, Event::Left { session });
                self.tell(active, Event::Opened { term });
                self.perform(u64::MAX, 0);
            }
        }
    }

    fn take_over(&mut self, standby: usize, (epoch, next): (u64, u64)) {
        let (old, session) = (self.active, self.session);
        self.tell(standby, Event::Left { session });
        self.term += 1;
        let (how, term) = (Won::TakeOver, self.term);
        self.tell(standby, Event::TermWon { how, term, epoch, session, next });
        // Cancelled effects were never performed there; this side performs the others, perhaps a
        // second time.
        if self.random.bool() {
            let lost = self.waiting.iter().filter(|(id, ..)| *id >= next).copied();
            lost.collect::<Vec<_>>().iter().for_each(|(id, ..)| {
                self.tell(old, Event::Cancelled { id: *id });
            });
            self.tell(old, Event::Fenced);
            self.tell(old, Event::Ended);
        }
        self.active = standby;
        self.last[standby] = next - 1;
        self.next = next;
        self.epoch = epoch + 1;
        self.waiting.retain(|(id, ..)| *id < next);
        self.waiting.iter_mut().for_each(|(.., replay)| *replay = true);
        for (id, epoch, _) in self.waiting.clone() {
            self.tell(standby, Event::Adopted { id, slot: 1, op: Op::BlockWrite, epoch });
        }
        self.tell(standby, Event::Opened { term });
        self.perform(u64::MAX, 0);
    }
}

/// How a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    TakeOver,
    Alone,
    GivenUp,
}

const LIVES: &[&[End]] = &[
    &[],
    &[End::TakeOver],
    &[End::Alone],
    &[End::GivenUp],
    &[End::TakeOver, End::TakeOver, End::Alone],
    &[End::Alone, End::GivenUp, End::TakeOver, End::GivenUp],
];

fn each_life(mut judge: impl FnMut(Vec<Log>, &mut fastrand::Rng)) {
    for seed in 0..SEEDS {
        for ends in LIVES {
            judge(World::live(seed, ends), &mut fastrand::Rng::with_seed(seed));
        }
    }
}

/// Every place with an event for which `wanted` holds.
fn places(logs: &[Log], wanted: impl Fn(&Event) -> bool) -> Vec<(usize, usize)> {
    let of = |(number, log): (usize, &Log)| {
        let at = log.entries.iter().enumerate().filter(|(_, entry)| wanted(&entry.event));
        at.map(|(at, _)| (number, at)).collect::<Vec<_>>()
    };
    logs.iter().enumerate().flat_map(of).collect()
}

fn renumber(log: &mut Log) {
    log.entries.iter_mut().zip(0..).for_each(|(entry, number)| entry.sequence = number);
}

/// Breaks every history at a random place, if `spoil` can break it there: the verifier must find
/// each breach.
fn breaks(
    wanted: impl Fn(&Event) -> bool,
    promise: &str,
    spoil: impl Fn(&mut Vec<Log>, usize, usize) -> bool,
) {
    let mut spoiled = 0;
    each_life(|mut logs, random| {
        let found = places(&logs, &wanted);
        if found.is_empty() {
            return;
        }
        let (log, at) = found[random.usize(..found.len())];
        if !spoil(&mut logs, log, at) {
            return;
        }
        spoiled += 1;
        logs.iter_mut().for_each(renumber);
        match verify(&logs, false) {
            Verdict::Broken(breach) => assert_eq!(breach.promise, promise, "{}", breach.what),
            verdict => {
                panic!("expected {promise} broken at {log}, {at}, found {verdict}\n{}", show(&logs))
            }
        }
    });
    assert!(spoiled > 100, "only {spoiled} histories could be spoiled in this way");
}

fn show(logs: &[Log]) -> String {
    let mut text = String::new();
    for log in logs {
        text += &format!("{}\n", log.name);
        log.entries.iter().for_each(|entry| text += &format!("  {entry}\n"));
    }
    text
}

#[test]
fn what_is_true_is_proven() {
    each_life(|logs, _| {
        let Verdict::Proved(counts) = verify(&logs, false) else {
            panic!("{}\n{}", verify(&logs, false), show(&logs));
        };
        let performed = places(&logs, |event| matches!(event, Event::Performing { .. })).len();
        assert_eq!(counts.performed, performed as u64);
        assert_eq!(counts.after_ack + counts.alone, counts.performed);
        let replays = |event: &Event| matches!(event, Event::Performing { replay: true, .. });
        assert_eq!(counts.replayed, places(&logs, replays).len() as u64);
    });
}

/// Removes the beginning of some logs, as rotation does.
fn rotate(logs: &mut [Log], random: &mut fastrand::Rng) {
    for log in logs {
        let gone = random.usize(0..=log.entries.len());
        if gone > 0 && random.bool() {
            log.header.number = 1;
            log.entries.drain(..gone).for_each(|entry| log.header.before.take(&entry));
        }
    }
}

/// A verifier judges rotated logs as it judges whole ones.
#[test]
fn what_rotation_has_left_breaks_nothing() {
    let mut proved = 0;
    each_life(|mut logs, random| {
        rotate(&mut logs, random);
        match verify(&logs, true) {
            Verdict::Broken(breach) => panic!("{}\n{}", Verdict::Broken(breach), show(&logs)),
            Verdict::Proved(_) => proved += 1,
            // Rotation may have removed a standby's log, and every record of its session.
            Verdict::Incomplete { .. } => {}
        }
    });
    assert!(proved > 1000, "{proved} proved");
}

/// A process may die, or its host lose the end of its log, at any moment: this breaks no promise.
#[test]
fn a_log_that_is_cut_off_breaks_nothing() {
    each_life(|mut logs, random| {
        for log in &mut logs {
            let keep = random.usize(0..=log.entries.len());
            log.entries.truncate(keep);
        }
        let verdict = verify(&logs, false);
        assert!(!matches!(verdict, Verdict::Broken(_)), "{verdict}\n{}", show(&logs));
    });
}

#[test]
fn p1_performed_before_its_ack() {
    breaks(
        |event| matches!(event, Event::AckReceived { .. }),
        "P1",
        |logs, log, at| {
            let entries = &mut logs[log].entries;
            let Event::AckReceived { epoch, .. } = entries[at].event else { unreachable!() };
            // Move the acknowledgement behind the first effect that it releases.
            let of = |entry: &Entry| matches!(entry.event, Event::Performing { epoch: of, .. } if of == epoch);
            let Some(first) = entries[at..].iter().position(of) else { return false };
            let effect = entries.remove(at + first);
            entries.insert(at, effect);
            // A breach only if the effect was held, and no gate was opened for it.
            let Event::Performing { id, .. } = effect.event else { unreachable!() };
            !entries[..at]
                .iter()
                .any(|entry| matches!(entry.event, Event::Held { next } if id < next))
        },
    );
}

/// Whether a log has an effect of epoch `of` that only an acknowledgement has released.
fn let_out_by_ack(log: &Log, of: u64) -> bool {
    let (mut open, mut passed) = (false, 0);
    log.entries.iter().any(|entry| match entry.event {
        Event::Opened { .. } => {
            open = true;
            false
        }
        Event::Held { next } => {
            (open, passed) = (false, next);
            false
        }
        Event::Performing { id, epoch, .. } => !open && id >= passed && epoch == of,
        _ => false,
    })
}

#[test]
fn p1_the_ack_is_not_in_the_standbys_log() {
    breaks(
        |event| matches!(event, Event::AckSent { .. }),
        "P1",
        |logs, log, at| {
            let sent = logs[log].entries.remove(at).event;
            let Event::AckSent { epoch, .. } = sent else { unreachable!() };
            // If the log ends before the removed record, that record may be in the lost part.
            let goes_on = logs[log].entries[at..].iter().any(|entry| {
                matches!(
                    entry.event,
                    Event::AckSent { .. } | Event::GaveUp { .. } | Event::TermWon { .. }
                )
            });
            goes_on && logs.iter().any(|log| let_out_by_ack(log, epoch))
        },
    );
}

#[test]
fn p1_the_checkpoint_does_not_hold_the_effect() {
    breaks(
        |event| matches!(event, Event::AckSent { .. }),
        "P1",
        |logs, log, at| {
            let Event::AckSent { epoch, next, .. } = &mut logs[log].entries[at].event else {
                unreachable!()
            };
            *next = 1;
            let of = *epoch;
            logs.iter().any(|log| let_out_by_ack(log, of))
        },
    );
}

#[test]
fn p1_an_effect_is_not_on_the_record() {
    breaks(
        |event| matches!(event, Event::Staged { .. }),
        "P1",
        |logs, log, at| {
            let entries = &mut logs[log].entries;
            entries.remove(at);
            // The verifier sees the gap if the effect was performed, or if another was staged after
            // it.
            entries[at..].iter().any(|entry| matches!(entry.event, Event::Staged { .. }))
        },
    );
}

#[test]
fn p1_opened_while_the_standby_may_take_over() {
    breaks(
        |event| matches!(event, Event::AckReceived { .. }),
        "P1",
        |logs, log, at| {
            let Event::AckReceived { term, .. } = logs[log].entries[at].event else {
                unreachable!()
            };
            let mut entry = logs[log].entries[at];
            entry.event = Event::Opened { term };
            logs[log].entries.insert(at, entry);
            true
        },
    );
}

#[test]
fn p1_performed_and_not_known_to_the_heir() {
    breaks(
        |event| matches!(event, Event::TermWon { how: Won::TakeOver, .. }),
        "P1",
        |logs, log, at| {
            let Event::TermWon { next, session, .. } = &mut logs[log].entries[at].event else {
                unreachable!()
            };
            let session = *session;
            // Pretend that the checkpoint did not contain what the old primary performed; change
            // nothing else.
            *next = 1;
            logs[log].entries.truncate(at + 1);
            let joined = |event: &Event| matches!(event, Event::Joined { session: of, .. } if *of == session);
            places(logs, joined).iter().any(|(parent, _)| {
                let performed = |entry: &Entry| matches!(entry.event, Event::Performing { .. });
                logs[*parent].entries.iter().any(performed)
            })
        },
    );
}

#[test]
fn p2_performed_twice() {
    breaks(
        |event| matches!(event, Event::Performing { .. }),
        "P2",
        |logs, log, at| {
            let entry = logs[log].entries[at];
            let until = logs[log].entries[at..].iter().position(|entry| {
                matches!(entry.event, Event::TermWon { .. } | Event::Fenced | Event::Ended)
            });
            let until = until.map_or(logs[log].entries.len(), |until| at + until);
            logs[log].entries.insert(until, entry);
            true
        },
    );
}

#[test]
fn p2_performed_in_an_old_term() {
    breaks(
        |event| matches!(event, Event::Performing { term: 2.., .. }),
        "P2",
        |logs, log, at| {
            let Event::Performing { term, .. } = &mut logs[log].entries[at].event else {
                unreachable!()
            };
            *term -= 1;
            true
        },
    );
}

#[test]
fn p2_performed_in_a_term_that_another_has_won() {
    breaks(
        |event| matches!(event, Event::Performing { .. }),
        "P2",
        |logs, log, at| {
            let own = |term| {
                logs[log].entries.iter().any(
                    |entry| matches!(entry.event, Event::TermWon { term: of, .. } if of == term),
                )
            };
            let Event::Performing { term, .. } = logs[log].entries[at].event else {
                unreachable!()
            };
            let foreign = term + 1;
            if own(foreign) {
                return false;
            }
            let Event::Performing { term, .. } = &mut logs[log].entries[at].event else {
                unreachable!()
            };
            *term = foreign;
            true
        },
    );
}

#[test]
fn p2_performed_after_the_right_was_lost() {
    breaks(
        |event| matches!(event, Event::Performing { .. }),
        "P2",
        |logs, log, at| {
            let mut fenced = logs[log].entries[at];
            fenced.event = Event::Fenced;
            logs[log].entries.insert(at, fenced);
            true
        },
    );
}

#[test]
fn p2_a_term_won_twice() {
    breaks(
        |event| matches!(event, Event::TermWon { how: Won::TakeOver, .. }),
        "P2",
        |logs, log, at| {
            let Event::TermWon { term, session, .. } = logs[log].entries[at].event else {
                unreachable!()
            };
            // Pretend that the old primary continued alone in the same term.
            let joined = |event: &Event| matches!(event, Event::Joined { session: of, .. } if *of == session);
            let (parent, _) = places(logs, joined)[0];
            let mut entry = logs[log].entries[at];
            entry.event = Event::TermWon { how: Won::Alone, term, epoch: 0, session: 0, next: 0 };
            logs[parent].entries.push(entry);
            true
        },
    );
}

#[test]
fn p2_two_hosts_perform_by_one_clock() {
    breaks(
        |event| matches!(event, Event::TermWon { how: Won::TakeOver, .. }),
        "P2",
        |logs, log, at| {
            let Event::TermWon { session, .. } = logs[log].entries[at].event else {
                unreachable!()
            };
            let performs = |entry: &&Entry| matches!(entry.event, Event::Performing { .. });
            let Some(first) = logs[log].entries[at..].iter().find(performs) else { return false };
            let since = first.time;
            let joined = |event: &Event| matches!(event, Event::Joined { session: of, .. } if *of == session);
            let (parent, _) = places(logs, joined)[0];
            logs[parent].header.boot = logs[log].header.boot.clone();
            let mut performed = logs[parent].entries.iter_mut().rev();
            let last = performed.find(|entry| matches!(entry.event, Event::Performing { .. }));
            last.unwrap().time = since + 1;
            true
        },
    );
}

#[test]
fn p2_acknowledged_by_a_machine_that_has_taken_over() {
    breaks(
        |event| matches!(event, Event::TermWon { how: Won::TakeOver, .. }),
        "P2",
        |logs, log, at| {
            let Event::TermWon { term, epoch, session, next, .. } = logs[log].entries[at].event
            else {
                unreachable!()
            };
            let mut ack = logs[log].entries[at];
            ack.event = Event::AckSent { epoch: epoch + 1, term: term - 1, session, next };
            logs[log].entries.insert(at + 1, ack);
            true
        },
    );
}

#[test]
fn without_the_standbys_log_it_is_the_primarys_word_alone() {
    let logs = World::live(7, &[End::TakeOver]);
    let verdict = verify(&logs[..1], true);
    assert!(
        matches!(&verdict, Verdict::Incomplete { reasons, .. } if reasons[0].contains("no log of the standby")),
        "{verdict}"
    );
    assert_eq!(verdict.exit_code(), 3);
}
