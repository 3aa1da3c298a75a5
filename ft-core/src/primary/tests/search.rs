//! A standby is searched for.

use super::*;

#[test]
fn a_standby_is_looked_for_until_it_is_found() {
    let mut pair = Pair::alone(true);
    let mut delays = Vec::new();
    for _ in 0..6 {
        pair.give(Event::ConnectFailed { reason: "connection refused".into() });
        let next = pair.primary.next_deadline().unwrap();
        assert_eq!(effects(&pair.give(Event::Tick)), [""; 0], "not before its time");
        delays.push((next.0 - pair.now) / MS);
        pair.now = next.0;
        assert_eq!(effects(&pair.give(Event::Tick)), ["connect"]);
    }
    assert_eq!(delays, [200, 400, 800, 1600, 3200, 5000]);
    pair.give(Event::ConnectFailed { reason: "connection refused".into() });
    pair.refused(Event::ConnectFailed { reason: "again".into() });
    assert!(pair.primary.reason().is_some_and(|reason| reason.contains("connection refused")));
    assert_eq!(effects(&pair.give(Event::OperatorProtect)), ["connect"]);
    assert_eq!(pair.primary.reason(), None, "of the former address");
    pair.give(Event::StandbyConnected { link: LINK, hello: hello() });
    pair.refused(Event::StandbyConnected { link: LinkId(2), hello: hello() });
}

/// P7: a standby that hangs gives way to another one, until it may hold a checkpoint.
#[test]
fn another_standby_takes_the_place_of_one_that_is_being_joined() {
    for phase in [Phase::Joining, Phase::Copying, Phase::Sealing] {
        let mut pair = Pair::at(true, phase);
        let out = pair.give(Event::OperatorProtect);
        let mut expected = Vec::from(["send Bye", "close"]);
        if phase == Phase::Sealing {
            // The gate was held for a checkpoint that is never sent.
            expected.push("alone 1");
        }
        expected.push("connect");
        assert_eq!(effects(&out), expected, "{phase:?}");
        assert_eq!(pair.phase(), Phase::Alone);
        // Later frames of the former standby are ignored.
        let welcome = frame(0, 1, Message::Welcome(hello()));
        assert_eq!(effects(&pair.give(Event::Frame { link: LINK, frame: welcome })), [""; 0]);
        pair.refused(Event::Sealed { link: LINK, epoch: Epoch(5) });
        let link = LinkId(2);
        assert_eq!(
            effects(&pair.give(Event::StandbyConnected { link, hello: hello() })),
            ["send Hello"]
        );
    }
    // P2: from here on it may hold a checkpoint, and must be asked.
    for phase in [Phase::Arming, Phase::Protected, Phase::Detaching] {
        Pair::at(true, phase).refused(Event::OperatorProtect);
    }
    Pair::doubting().refused(Event::OperatorProtect);
    Pair::waiting().refused(Event::OperatorProtect);
}

#[test]
fn an_operator_who_changes_the_order_gets_one_connection_at_a_time() {
    let mut pair = Pair::alone(true);
    assert!(pair.give(Event::OperatorRunAlone).is_empty());
    assert!(pair.give(Event::OperatorProtect).is_empty(), "the first attempt is under way");
    assert!(pair.give(Event::OperatorRunAlone).is_empty());
    let out = pair.give(Event::StandbyConnected { link: LINK, hello: hello() });
    assert_eq!(effects(&out), ["close"]);
    assert_eq!(pair.phase(), Phase::Alone);
    assert_eq!(effects(&pair.give(Event::OperatorProtect)), ["connect"]);
}

/// How soon a standby is searched for after the next failure.
fn next_search(pair: &mut Pair) -> Duration {
    let now = pair.now;
    pair.give(Event::ConnectFailed { reason: "refused".into() });
    Duration::from_nanos(pair.primary.next_deadline().unwrap().0 - now)
}

/// P7, P9: failures of one standby do not delay the next.
#[test]
fn failures_are_forgotten_when_a_standby_protects_or_the_operator_wants_one() {
    let first = PrimaryOptions::default().connect_retry.first;
    let mut pair = Pair::alone(true);
    assert_eq!(next_search(&mut pair), first);
    pair.now += 200 * MS;
    pair.give(Event::Tick);
    assert_eq!(next_search(&mut pair), 2 * first);
    pair.give(Event::OperatorProtect);
    assert_eq!(next_search(&mut pair), first);

    // A standby that refuses will probably do so again; one that has protected the machine may do
    // that again.
    let mut pair = Pair::at(true, Phase::Arming);
    pair.say(0, Message::Refuse { reason: "MSR 0x10".into() });
    assert_eq!(pair.primary.refusal(), Some("MSR 0x10"));
    pair.give(Event::ArbiterGranted { term: Term(2) });
    assert_eq!(pair.primary.next_deadline(), Some(Time(5000 * MS)));
    pair.refused(Event::ArbiterGranted { term: Term(3) });
    let link = LinkId(2);
    pair.give(Event::StandbyConnected { link, hello: hello() });
    assert_eq!((pair.primary.refusal(), pair.primary.reason()), (None, None));
    let say = |pair: &mut Pair, epoch, message| {
        pair.give(Event::Frame { link, frame: frame(epoch, 2, message) })
    };
    say(&mut pair, 0, Message::Welcome(Box::new(Hello { term: Term(2), ..*hello() })));
    pair.give(Event::PrecopyDone { link });
    pair.give(Event::Sealed { link, epoch: Epoch(6) });
    say(&mut pair, 6, Message::Ack);
    pair.give(Event::LinkLost { link, reason: "reset".into() });
    pair.give(Event::ArbiterGranted { term: Term(3) });
    assert_eq!(pair.primary.next_deadline(), Some(Time(0) + first));
}
