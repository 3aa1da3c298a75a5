//! A machine that makes no progress (P7).

use super::*;

/// P7: a machine whose output cannot leave serves no client, so its standby continues. P2: it asks
/// for the right itself only after the standby has had its turn.
#[test]
fn p7_a_machine_that_is_stuck_gives_its_standby_the_guest() {
    for phase in [Phase::Arming, Phase::Protected, Phase::Detaching] {
        let mut pair = Pair::at(true, phase);
        assert_eq!(effects(&pair.give(stalled())), ["send Refuse", "hold", "close"], "{phase:?}");
        assert_eq!(pair.phase(), Phase::Doubting);
        assert_eq!(pair.primary.reason(), Some("the device thread is stuck"));
        let due = pair.primary.next_deadline().unwrap();
        assert_eq!(due, Time(0) + PrimaryOptions::default().setup_timeout);
        pair.now = due.0 - 1;
        assert_eq!(effects(&pair.give(Event::Tick)), [""; 0]);
        pair.now = due.0;
        assert_eq!(effects(&pair.give(Event::Tick)), ["ask 2"]);
        let out = pair.give(Event::ArbiterDenied { term: Term(2), holder: "standby@b".into() });
        assert_eq!(effects(&out), ["hold", "stop fenced=true"]);
    }
}

/// A stuck machine may recover before another has taken its place.
#[test]
fn a_machine_that_is_no_longer_stuck_asks_at_once() {
    let mut pair = Pair::at(true, Phase::Protected);
    pair.give(stalled());
    pair.now += MS;
    assert_eq!(effects(&pair.give(Event::Recovered)), ["ask 2"]);
    assert_eq!(effects(&pair.give(Event::ArbiterGranted { term: Term(2) })), ["alone 2"]);
    assert!(!pair.primary.is_stalled());
}

/// P7: a machine that had asked before it was stuck also leaves its standby time if it gets no
/// answer. Fails if it asks again at once, since it may win the term that the standby is about to
/// claim.
#[test]
fn p7_a_machine_that_is_stuck_and_finds_no_arbiter_leaves_its_standby_the_time() {
    let unreachable = || Event::ArbiterUnreachable { reason: "timeout".into() };
    let patience = PrimaryOptions::default().setup_timeout;
    let mut pair = Pair::doubting();
    pair.now += MS;
    pair.give(stalled());
    let turn = Time(pair.now) + patience;
    pair.now += MS;
    pair.give(unreachable());
    assert_eq!(pair.primary.next_deadline(), Some(turn));
    pair.now = turn.0;
    assert_eq!(effects(&pair.give(Event::Tick)), ["ask 2"]);

    // No longer stuck: it no longer waits.
    let mut pair = Pair::doubting();
    pair.give(stalled());
    pair.give(Event::Recovered);
    pair.give(unreachable());
    assert_eq!(pair.primary.next_deadline(), Some(Time(pair.now + 50 * MS)));
}

/// P9: no standby may hold checkpoints of a machine that it could not continue when needed.
#[test]
fn a_machine_that_is_stuck_joins_no_standby() {
    for phase in [Phase::Joining, Phase::Copying] {
        let mut pair = Pair::at(true, phase);
        assert_eq!(effects(&pair.give(stalled())), ["send Refuse", "close"], "{phase:?}");
        pair.now += 60_000 * MS;
        assert_eq!(effects(&pair.give(Event::Tick)), [""; 0], "nobody is looked for");
        pair.refused(Event::OperatorProtect);
        assert_eq!(effects(&pair.give(Event::Recovered)), ["connect"]);
    }
    // A connection that was requested before.
    let mut pair = Pair::alone(true);
    pair.give(stalled());
    let out = pair.give(Event::StandbyConnected { link: LINK, hello: hello() });
    assert_eq!(effects(&out), ["close"]);
}
