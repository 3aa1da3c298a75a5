//! The outcome of every event in every state: `table.txt`, which reads like a specification. A
//! change of it is a change of the standby's behaviour.

use super::*;
use crate::testing::{Table, changes, listed, made_of_it};

const OTHER: LinkId = LinkId(9);
const NEXT: LinkId = LinkId(2);
const SECOND: u64 = 1000 * MS;

fn facts(standby: &Standby, now: u64) -> [(&'static str, String); 9] {
    let due = standby.next_deadline().map(|due| Duration::from_nanos(due.0.saturating_sub(now)));
    let lack = standby
        .lack()
        .map(|lack| format!("{}{}", lack.reason, if lack.blocks { ", blocks" } else { "" }));
    [
        ("state", standby.phase().name().into()),
        ("term", standby.term().to_string()),
        ("of", standby.leader.clone().unwrap_or("nobody".into())),
        ("holds", standby.epoch().map_or("none".into(), |epoch| epoch.to_string())),
        ("staged", standby.staged_bytes().to_string()),
        (
            "link",
            standby.session.as_ref().map_or("none".into(), |session| session.link.0.to_string()),
        ),
        ("lack", lack.unwrap_or("none".into())),
        ("held back", standby.is_held_back().to_string()),
        ("due in", due.map_or("never".into(), |due| format!("{due:?}"))),
    ]
}

type Make = fn() -> Pair;

const STATES: &[(&str, Make)] = &[
    ("waiting", || Pair::waiting(true)),
    ("waiting, has heard of term 2", || after(Pair::doubting(), [denied(2)])),
    ("greeting", || after(Pair::waiting(true), [Event::Connected { link: LINK }])),
    ("greeting, describes itself", greeted),
    ("greeting, lacks what it must have", || {
        after(
            Pair::waiting(true),
            [lacks(true), Event::Connected { link: LINK }, of_primary(0, Message::Hello(hello()))],
        )
    }),
    ("filling", || Pair::filling(true)),
    ("filling, checks", || checks(Pair::filling(true), 5)),
    ("ready", || after(Pair::ready(true), [hashed(5, 5)])),
    ("ready, no arbiter", || after(Pair::ready(false), [hashed(5, 5)])),
    ("ready, hashes 5", || Pair::ready(true)),
    ("ready, checks 6", || checks(after(Pair::ready(true), [hashed(5, 5)]), 6)),
    ("ready, lacks something", || after(Pair::ready(true), [lacks(false)])),
    ("ready, lacks what it must have", || after(Pair::ready(true), [lacks(true)])),
    ("doubting", Pair::doubting),
    ("doubting, asks later", || after(Pair::doubting(), [unanswered()])),
    ("doubting, was not ready", || after(Pair::doubting(), [not_ready()])),
    ("doubting, was not ready, a connection comes", || {
        after(Pair::doubting(), [not_ready(), Event::Connected { link: NEXT }])
    }),
    ("doubting, held back", || after(Pair::ready(true), [lacks(true), lost()])),
    ("doubting, held back, a connection comes", || {
        after(Pair::ready(true), [lacks(true), lost(), Event::Connected { link: NEXT }])
    }),
    ("doubting, by the operator's wish", || after(Pair::ready(true), [Event::OperatorTakeOver])),
    ("waiting for the operator", || after(Pair::ready(false), [lost()])),
    ("waiting for the operator, lacks what it must have", || {
        after(Pair::ready(false), [lost(), lacks(true)])
    }),
    ("waiting for the operator, a connection comes", || {
        after(Pair::ready(false), [lost(), Event::Connected { link: NEXT }])
    }),
    ("has taken over", || after(Pair::doubting(), [granted(2)])),
    ("stopped", || after(Pair::waiting(true), [Event::OperatorStop])),
];

type Build = fn() -> Event;

const EVENTS: &[(&str, u64, Build)] = &[
    ("connected", 0, || Event::Connected { link: LinkId(3) }),
    ("the same link connected", 0, || Event::Connected { link: LINK }),
    ("Hello", 0, || of_primary(0, Message::Hello(hello()))),
    ("Hello that names another term than its frame", 0, || {
        of_primary(0, Message::Hello(of_term(2)))
    }),
    ("next link: Hello of term 1", 0, || of_next(1, Message::Hello(hello()))),
    ("next link: Hello of term 2", 0, || of_next(2, Message::Hello(of_term(2)))),
    ("next link: Hello of term 2 of another machine", 0, || {
        of_next(2, Message::Hello(Box::new(Hello { name: "web".into(), ..*of_term(2) })))
    }),
    ("next link: Bye", 0, || of_next(1, last_word(ByeReason::Stopped, (0, SESSION)))),
    ("next link: lost", 0, || Event::LinkLost { link: NEXT, reason: "reset".into() }),
    ("Heartbeat", 0, || of_primary(0, Message::Heartbeat(BEAT))),
    ("Heartbeat after 100 ms", 100 * MS, || of_primary(0, Message::Heartbeat(BEAT))),
    ("HeartbeatReply", 0, || of_primary(0, Message::HeartbeatReply(BEAT))),
    ("Heartbeat of term 2", 0, || Event::Frame {
        link: LINK,
        frame: frame(0, 2, Message::Heartbeat(BEAT)),
    }),
    ("Bye, detach", 0, || of_primary(0, last_word(ByeReason::Detach, (STANDBY_SESSION, SESSION)))),
    ("Bye, stopped", 0, || {
        of_primary(0, last_word(ByeReason::Stopped, (STANDBY_SESSION, SESSION)))
    }),
    ("Bye, powered off", 0, || {
        of_primary(0, last_word(ByeReason::PoweredOff, (STANDBY_SESSION, SESSION)))
    }),
    ("Bye, as a standby says", 0, || {
        of_primary(0, last_word(ByeReason::Detached, (STANDBY_SESSION, SESSION)))
    }),
    ("Bye to no session", 0, || of_primary(0, last_word(ByeReason::Detach, (0, SESSION)))),
    ("Bye to another session", 0, || {
        of_primary(0, last_word(ByeReason::Detach, (STANDBY_SESSION + 1, SESSION)))
    }),
    ("Bye of another primary", 0, || {
        of_primary(0, last_word(ByeReason::Detach, (STANDBY_SESSION, SESSION + 1)))
    }),
    ("Refuse", 0, || of_primary(0, Message::Refuse { reason: "no".into() })),
    ("Welcome", 0, || of_primary(0, Message::Welcome(hello()))),
    ("Ack", 0, || of_primary(6, Message::Ack)),
    ("state of 5", 0, || of_primary(5, Message::State(Data(Vec::from([1]))))),
    ("state of 6", 0, || of_primary(6, Message::State(Data(Vec::from([1]))))),
    ("state of 6 after 50 ms", 50 * MS, || of_primary(6, Message::State(Data(Vec::from([1]))))),
    ("state of 7", 0, || of_primary(7, Message::State(Data(Vec::from([1]))))),
    ("another link: state of 6", 0, || Event::Frame {
        link: OTHER,
        frame: frame(6, 1, Message::State(Data(Vec::from([1])))),
    }),
    ("bytes after 49 ms", 49 * MS, || Event::Progress { link: LINK }),
    ("bytes after 50 ms", 50 * MS, || Event::Progress { link: LINK }),
    ("another link: bytes after 100 ms", 100 * MS, || Event::Progress { link: OTHER }),
    ("garbled", 0, || Event::Garbled { link: LINK, error: WireError::Magic { found: [0; 4] } }),
    ("another link: garbled", 0, || Event::Garbled {
        link: OTHER,
        error: WireError::Magic { found: [0; 4] },
    }),
    ("link lost", 0, lost),
    ("another link: lost", 0, || Event::LinkLost { link: OTHER, reason: "reset".into() }),
    ("described", 0, || Event::Described { ours: hello() }),
    ("described, does not fit", 0, || Event::Described {
        ours: Box::new(Hello { name: "web".into(), ..*hello() }),
    }),
    ("cannot host", 0, || Event::CannotHost { reason: "memory".into() }),
    ("applicable: 5", 0, || Event::Applicable { epoch: Epoch(5) }),
    ("applicable: 6", 0, || Event::Applicable { epoch: Epoch(6) }),
    ("not applicable: 5", 0, || Event::NotApplicable { epoch: Epoch(5), reason: "?".into() }),
    ("not applicable: 6", 0, || Event::NotApplicable { epoch: Epoch(6), reason: "?".into() }),
    ("hashed: 5, the same", 0, || hashed(5, 5)),
    ("hashed: 5, memory differs", 0, || hashed(5, 4)),
    ("hashed: 6", 0, || hashed(6, 6)),
    ("cannot hash: 5", 0, || Event::CannotHash { epoch: Epoch(5), reason: "?".into() }),
    ("cannot hash: 6", 0, || Event::CannotHash { epoch: Epoch(6), reason: "?".into() }),
    ("cannot go on", 0, || Event::CannotGoOn { reason: "?".into() }),
    ("not ready", 0, not_ready),
    ("lacks something", 0, || lacks(false)),
    ("lacks what it must have", 0, || lacks(true)),
    ("lacks nothing", 0, || Event::Resources { lack: None }),
    ("after 49 ms", 49 * MS, || Event::Tick),
    ("after 50 ms", 50 * MS, || Event::Tick),
    ("after 500 ms", 500 * MS, || Event::Tick),
    ("after more than 500 ms", 500 * MS + 1, || Event::Tick),
    ("after 10 s", 10 * SECOND, || Event::Tick),
    ("after more than 10 s", 10 * SECOND + 1, || Event::Tick),
    ("arbiter: term 2 granted", 0, || granted(2)),
    ("arbiter: term 3 granted", 0, || granted(3)),
    ("arbiter: term 2 denied", 0, || denied(2)),
    ("arbiter: term 3 denied", 0, || denied(3)),
    ("arbiter: unreachable", 0, unanswered),
    ("operator: take over", 0, || Event::OperatorTakeOver),
    ("operator: discard", 0, || Event::OperatorDiscard),
    ("operator: stop", 0, || Event::OperatorStop),
];

const BEAT: Heartbeat = Heartbeat { sequence: 1, sent: 0 };

fn after<const N: usize>(mut pair: Pair, events: [Event; N]) -> Pair {
    for event in events {
        pair.give(event);
    }
    pair
}

fn greeted() -> Pair {
    after(
        Pair::waiting(true),
        [Event::Connected { link: LINK }, of_primary(0, Message::Hello(hello()))],
    )
}

fn checks(mut pair: Pair, epoch: u64) -> Pair {
    pair.checkpoint(epoch);
    pair
}

fn of_term(term: u64) -> Box<Hello> {
    Box::new(Hello { term: Term(term), ..*hello() })
}

fn of_primary(epoch: u64, message: Message) -> Event {
    Event::Frame { link: LINK, frame: frame(epoch, 1, message) }
}

fn of_next(term: u64, message: Message) -> Event {
    Event::Frame { link: NEXT, frame: frame(0, term, message) }
}

fn last_word(reason: ByeReason, (session, from): (u64, u64)) -> Message {
    Message::Bye { reason, session, from, why: String::new() }
}

fn hashed(epoch: u64, memory: u64) -> Event {
    Event::Hashed { epoch: Epoch(epoch), hashes: Hashes { memory, state: epoch } }
}

fn unanswered() -> Event {
    Event::ArbiterUnreachable { reason: "timeout".into() }
}

fn granted(term: u64) -> Event {
    Event::ArbiterGranted { term: Term(term) }
}

fn denied(term: u64) -> Event {
    Event::ArbiterDenied { term: Term(term), holder: "a".into() }
}

/// Actions and reports by name.
fn said(actions: &[Action]) -> String {
    let said = actions.iter().map(|action| match action {
        Action::Report(report) => {
            let report = format!("{report:?}");
            format!("report {}", report.split([' ', '{']).next().unwrap())
        }
        Action::Send { frame, .. } => {
            let name = effects(core::slice::from_ref(action)).concat();
            let of_epoch = matches!(frame.message, Message::Ack | Message::Verified(_));
            assert_eq!(frame.epoch != Epoch(0), of_epoch, "{name}");
            let of = match &frame.message {
                Message::Bye { reason, session, from, .. } => {
                    format!(" {reason:?} to {session} from {from}")
                }
                Message::Readiness { session, from, .. } => format!(" to {session} from {from}"),
                Message::Welcome(ours) => format!(" to {}", ours.session),
                _ => String::new(),
            };
            format!("{name}{of} of term {}", frame.term)
        }
        _ => effects(core::slice::from_ref(action)).concat(),
    });
    said.collect::<Vec<_>>().join(", ")
}

fn outcome(make: Make, delay: u64, event: Event) -> String {
    let mut pair = make();
    let before = facts(&pair.standby, pair.now);
    pair.now += delay;
    let Ok(actions) = pair.standby.handle(Time(pair.now), event) else {
        assert_eq!(
            facts(&pair.standby, pair.now - delay),
            before,
            "a refused event changes nothing"
        );
        return "refused".into();
    };
    let changed = changes(&before, &facts(&pair.standby, pair.now));
    made_of_it(&said(&actions), &changed)
}

#[test]
fn every_state_answers_every_event_as_in_the_table() {
    let mut table = Table(String::new());
    for (name, make) in STATES {
        let first = make();
        let known = listed(&facts(&first.standby, first.now));
        let outcomes = EVENTS
            .iter()
            .map(|(event, delay, build)| ((*event).into(), outcome(*make, *delay, build())));
        table.state(name, &known, outcomes.collect());
    }
    table.is(include_str!("table.txt"));
}
