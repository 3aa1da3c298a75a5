//! The outcome of every event in every state: `table.txt`, which reads like a specification. A
//! change of it is a change of the primary's behaviour.

use super::*;
use crate::testing::{Table, changes, listed, made_of_it};
use crate::wire::Data;

const OTHER: LinkId = LinkId(9);
const SECOND: u64 = 1000 * MS;

fn facts(primary: &Primary, now: u64) -> [(&'static str, String); 10] {
    let option = |epoch: Option<Epoch>| epoch.map_or("none".into(), |epoch| epoch.to_string());
    let due = primary.next_deadline().map(|due| Duration::from_nanos(due.0.saturating_sub(now)));
    [
        ("state", primary.phase().name().into()),
        ("term", primary.term().to_string()),
        ("sealed", option(primary.sealed())),
        ("acknowledged", option(primary.acknowledged())),
        ("in flight", primary.in_flight().to_string()),
        ("may seal", primary.may_seal().to_string()),
        ("link", primary.link().map_or("none".into(), |link| link.0.to_string())),
        ("lack", primary.lack().unwrap_or("none").into()),
        ("stalled", primary.is_stalled().to_string()),
        ("due in", due.map_or("never".into(), |due| format!("{due:?}"))),
    ]
}

type Make = fn() -> Pair;

const STATES: &[(&str, Make)] = &[
    ("alone, connects", || Pair::alone(true)),
    ("alone, will connect", || after(Pair::alone(true), [unreached()])),
    ("alone, connects, but is to have no standby", || {
        after(Pair::alone(true), [Event::OperatorRunAlone])
    }),
    ("alone, is to have no standby", || {
        after(Pair::alone(true), [unreached(), Event::OperatorRunAlone])
    }),
    ("alone and stalled, connects", || after(Pair::alone(true), [stalled()])),
    ("joining", || Pair::at(true, Phase::Joining)),
    ("copying", || Pair::at(true, Phase::Copying)),
    ("sealing", || Pair::at(true, Phase::Sealing)),
    ("arming", || Pair::at(true, Phase::Arming)),
    ("protected", || Pair::at(true, Phase::Protected)),
    ("protected, one epoch in flight", || {
        after(Pair::at(true, Phase::Protected), [sealed(LINK, 6)])
    }),
    ("protected, two epochs in flight", || {
        after(Pair::at(true, Phase::Protected), [sealed(LINK, 6), sealed(LINK, 7)])
    }),
    ("protected, no arbiter", || Pair::at(false, Phase::Protected)),
    ("the standby lacks something", || {
        after(
            Pair::at(true, Phase::Protected),
            [of_standby(0, 1, readiness(Some("no disk"), SESSION, STANDBY_SESSION))],
        )
    }),
    ("detaching", || Pair::at(true, Phase::Detaching)),
    ("doubting", Pair::doubting),
    ("doubting, asks later", || after(Pair::doubting(), [unanswered()])),
    ("doubting and stalled", || after(Pair::at(true, Phase::Protected), [stalled()])),
    ("doubting, asked and stalled", || after(Pair::doubting(), [stalled()])),
    ("waiting for the operator", Pair::waiting),
    ("stopped", || after(Pair::alone(true), [Event::OperatorStop])),
];

type Build = fn() -> Event;

const EVENTS: &[(&str, u64, Build)] = &[
    ("connected", 0, || Event::StandbyConnected { link: LinkId(2), hello: hello() }),
    ("connect failed", 0, unreached),
    ("Welcome", 0, || of_standby(0, 1, Message::Welcome(hello()))),
    ("Welcome to another session", 0, || {
        of_standby(0, 1, Message::Welcome(Box::new(Hello { session: SESSION + 1, ..*hello() })))
    }),
    ("Welcome of another machine", 0, || {
        of_standby(0, 1, Message::Welcome(Box::new(Hello { name: "web".into(), ..*hello() })))
    }),
    ("Ack 5", 0, || of_standby(5, 1, Message::Ack)),
    ("Ack 6", 0, || of_standby(6, 1, Message::Ack)),
    ("Ack 7", 0, || of_standby(7, 1, Message::Ack)),
    ("Ack 5 of term 0", 0, || of_standby(5, 0, Message::Ack)),
    ("Ack 6 of term 2", 0, || of_standby(6, 2, Message::Ack)),
    ("Ack 6 after 500 ms", 500 * MS, || of_standby(6, 1, Message::Ack)),
    ("Ack 6 after more than 500 ms", 500 * MS + 1, || of_standby(6, 1, Message::Ack)),
    ("Ack 6 over another link", 0, || Event::Frame {
        link: OTHER,
        frame: frame(6, 1, Message::Ack),
    }),
    ("hashes agree", 0, || of_standby(5, 1, verified(true))),
    ("hashes differ", 0, || of_standby(5, 1, verified(false))),
    ("Heartbeat", 0, || of_standby(0, 1, Message::Heartbeat(BEAT))),
    ("HeartbeatReply", 0, || of_standby(0, 1, Message::HeartbeatReply(BEAT))),
    ("HeartbeatReply after 10 s", 10 * SECOND, || of_standby(0, 1, Message::HeartbeatReply(BEAT))),
    ("HeartbeatReply after more than 10 s", 10 * SECOND + 1, || {
        of_standby(0, 1, Message::HeartbeatReply(BEAT))
    }),
    ("lacks nothing", 0, || of_standby(0, 1, readiness(None, SESSION, STANDBY_SESSION))),
    ("lacks a disk", 0, || of_standby(0, 1, readiness(Some("no disk"), SESSION, STANDBY_SESSION))),
    ("lacks a tap", 0, || of_standby(0, 1, readiness(Some("no tap"), SESSION, STANDBY_SESSION))),
    ("lacks a tap, in another session", 0, || {
        of_standby(0, 1, readiness(Some("no tap"), SESSION + 1, STANDBY_SESSION))
    }),
    ("another standby lacks a tap", 0, || {
        of_standby(0, 1, readiness(Some("no tap"), SESSION, STANDBY_SESSION + 1))
    }),
    ("Refuse", 0, || of_standby(0, 1, Message::Refuse { reason: "no".into() })),
    ("Refuse of term 0", 0, || of_standby(0, 0, Message::Refuse { reason: "no".into() })),
    ("Bye, detached", 0, || {
        of_standby(0, 1, last_word(ByeReason::Detached, (SESSION, STANDBY_SESSION), ""))
    }),
    ("Bye, detached, for a reason", 0, || {
        of_standby(
            0,
            1,
            last_word(ByeReason::Detached, (SESSION, STANDBY_SESSION), "hashes differ"),
        )
    }),
    ("Bye, stopped", 0, || {
        of_standby(0, 1, last_word(ByeReason::Stopped, (SESSION, STANDBY_SESSION), ""))
    }),
    ("Bye, as a primary says", 0, || {
        of_standby(0, 1, last_word(ByeReason::Detach, (SESSION, STANDBY_SESSION), ""))
    }),
    ("Bye to another session", 0, || {
        of_standby(0, 1, last_word(ByeReason::Detached, (SESSION + 1, STANDBY_SESSION), ""))
    }),
    ("Bye of another standby", 0, || {
        of_standby(0, 1, last_word(ByeReason::Detached, (SESSION, STANDBY_SESSION + 1), ""))
    }),
    ("Hello", 0, || of_standby(0, 1, Message::Hello(hello()))),
    ("data", 0, || of_standby(6, 1, Message::State(Data(Vec::from([1]))))),
    ("garbled", 0, || Event::Garbled { link: LINK, error: WireError::Magic { found: [0; 4] } }),
    ("another link: garbled", 0, || Event::Garbled {
        link: OTHER,
        error: WireError::Magic { found: [0; 4] },
    }),
    ("unfit", 0, || Event::Unfit { link: LINK, reason: "a copy".into() }),
    ("another link: unfit", 0, || Event::Unfit { link: OTHER, reason: "a copy".into() }),
    ("link lost", 0, lost),
    ("another link: lost", 0, || Event::LinkLost { link: OTHER, reason: "reset".into() }),
    ("bytes", 0, || Event::Progress { link: LINK }),
    ("bytes after 100 ms", 100 * MS, || Event::Progress { link: LINK }),
    ("bytes after more than 500 ms", 500 * MS + 1, || Event::Progress { link: LINK }),
    ("bytes after more than 10 s", 10 * SECOND + 1, || Event::Progress { link: LINK }),
    ("another link: bytes after 100 ms", 100 * MS, || Event::Progress { link: OTHER }),
    ("pre-copy done", 0, || Event::PrecopyDone { link: LINK }),
    ("another link: pre-copy done", 0, || Event::PrecopyDone { link: OTHER }),
    ("sealed 5", 0, || sealed(LINK, 5)),
    ("sealed 6 after 100 ms", 100 * MS, || sealed(LINK, 6)),
    ("sealed 7", 0, || sealed(LINK, 7)),
    ("another link: sealed 6", 0, || sealed(OTHER, 6)),
    ("stalled", 0, stalled),
    ("stalled after 1 s", SECOND, stalled),
    ("recovered", 0, || Event::Recovered),
    ("after 49 ms", 49 * MS, || Event::Tick),
    ("after 50 ms", 50 * MS, || Event::Tick),
    ("after 200 ms", 200 * MS, || Event::Tick),
    ("after 500 ms", 500 * MS, || Event::Tick),
    ("after more than 500 ms", 500 * MS + 1, || Event::Tick),
    ("after 10 s", 10 * SECOND, || Event::Tick),
    ("after more than 10 s", 10 * SECOND + 1, || Event::Tick),
    ("arbiter: term 2 granted", 0, || Event::ArbiterGranted { term: Term(2) }),
    ("arbiter: term 3 granted", 0, || Event::ArbiterGranted { term: Term(3) }),
    ("arbiter: term 2 denied", 0, || Event::ArbiterDenied { term: Term(2), holder: "b".into() }),
    ("arbiter: term 3 denied", 0, || Event::ArbiterDenied { term: Term(3), holder: "b".into() }),
    ("arbiter: unreachable", 0, unanswered),
    ("operator: protect", 0, || Event::OperatorProtect),
    ("operator: run alone", 0, || Event::OperatorRunAlone),
    ("operator: stop", 0, || Event::OperatorStop),
    ("powered off", 0, || Event::GuestPoweredOff),
    ("fenced", 0, || Event::Fenced { reason: "term 2".into() }),
];

const BEAT: Heartbeat = Heartbeat { sequence: 1, sent: 0 };

fn after<const N: usize>(mut pair: Pair, events: [Event; N]) -> Pair {
    for event in events {
        pair.give(event);
    }
    pair
}

fn unreached() -> Event {
    Event::ConnectFailed { reason: "refused".into() }
}

fn unanswered() -> Event {
    Event::ArbiterUnreachable { reason: "timeout".into() }
}

fn sealed(link: LinkId, epoch: u64) -> Event {
    Event::Sealed { link, epoch: Epoch(epoch) }
}

fn of_standby(epoch: u64, term: u64, message: Message) -> Event {
    Event::Frame { link: LINK, frame: frame(epoch, term, message) }
}

fn readiness(lack: Option<&str>, session: u64, from: u64) -> Message {
    Message::Readiness { lack: lack.map(Into::into), session, from }
}

fn last_word(reason: ByeReason, (session, from): (u64, u64), why: &str) -> Message {
    Message::Bye { reason, session, from, why: why.into() }
}

fn verified(agree: bool) -> Message {
    let hashes = Hashes { memory: 1, state: 2 };
    Message::Verified(Verified { agree, primary: hashes, standby: hashes })
}

/// Actions and reports by name.
fn said(actions: &[Action]) -> String {
    let mut said = names(actions);
    for (name, action) in said.iter_mut().zip(actions) {
        match action {
            Action::Report(report) => {
                let report = format!("{report:?}");
                *name = format!("report {}", report.split([' ', '{']).next().unwrap());
            }
            Action::Send { frame, .. } => {
                assert_eq!(frame.epoch, Epoch(0), "no part of a checkpoint");
                if let Message::Bye { reason, session, from, .. } = &frame.message {
                    *name = format!("{name} {reason:?} to {session} from {from}");
                }
                *name = format!("{name} of term {}", frame.term);
            }
            Action::Release { latency, .. } => *name = format!("{name} after {latency:?}"),
            _ => {}
        }
    }
    said.join(", ")
}

fn outcome(make: Make, delay: u64, event: Event) -> String {
    let mut pair = make();
    let before = facts(&pair.primary, pair.now);
    pair.now += delay;
    let Ok(actions) = pair.primary.handle(Time(pair.now), event) else {
        assert_eq!(
            facts(&pair.primary, pair.now - delay),
            before,
            "a refused event changes nothing"
        );
        return "refused".into();
    };
    // The reported reason is also the status's, unless something follows it.
    if let [.., Action::Report(Report::LinkLost { reason })] = &actions[..]
        && !pair.primary.is_stalled()
    {
        assert_eq!(pair.primary.reason(), Some(reason.as_str()));
    }
    let changed = changes(&before, &facts(&pair.primary, pair.now));
    made_of_it(&said(&actions), &changed)
}

#[test]
fn every_state_answers_every_event_as_in_the_table() {
    let mut table = Table(String::new());
    for (name, make) in STATES {
        let first = make();
        let known = listed(&facts(&first.primary, first.now));
        let outcomes = EVENTS
            .iter()
            .map(|(event, delay, build)| ((*event).into(), outcome(*make, *delay, build())));
        table.state(name, &known, outcomes.collect());
    }
    table.is(include_str!("table.txt"));
}
