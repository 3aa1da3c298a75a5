//! The operator.

use super::*;

#[test]
fn p2_without_an_arbiter_the_operator_decides() {
    let mut pair = Pair::ready(false);
    pair.refused(Event::OperatorTakeOver);
    assert_eq!(effects(&pair.give(lost())), ["close"]);
    assert_eq!(pair.phase(), Phase::WaitingForOperator);
    let out = pair.give(Event::OperatorTakeOver);
    assert_eq!(effects(&out), ["take over 2 at 5"]);
    let mut pair = Pair::ready(false);
    pair.give(lost());
    assert_eq!(effects(&pair.give(Event::OperatorDiscard)), ["discard"]);
    assert_eq!(pair.phase(), Phase::Waiting);
    Pair::ready(true).refused(Event::OperatorDiscard);
}

#[test]
fn p2_while_the_operator_is_awaited_only_a_newer_primary_of_this_machine_may_join() {
    let join = |term: u64, name: &str| {
        let mut pair = Pair::ready(false);
        pair.give(lost());
        let link = LinkId(2);
        assert!(pair.give(Event::Connected { link }).is_empty());
        let mut newer = hello();
        newer.term = Term(term);
        newer.name = name.into();
        let out = pair.give(Event::Frame { link, frame: frame(0, term, Message::Hello(newer)) });
        (effects(&out), pair.phase(), pair.standby.epoch())
    };
    let held = (
        ["send Refuse", "close"].map(String::from).to_vec(),
        Phase::WaitingForOperator,
        Some(Epoch(5)),
    );
    assert_eq!(join(1, "vm"), held);
    assert_eq!(join(2, "web"), held);
    let joined = (["discard", "describe"].map(String::from).to_vec(), Phase::Greeting, None);
    assert_eq!(join(2, "vm"), joined);
}

#[test]
fn a_planned_move_acknowledges_nothing_more() {
    let mut pair = Pair::ready(true);
    pair.checkpoint(6);
    assert_eq!(effects(&pair.give(Event::OperatorTakeOver)), ["ask 2"]);
    pair.refused(Event::Applicable { epoch: Epoch(6) });
    let beat = Heartbeat { sequence: 1, sent: 0 };
    assert_eq!(effects(&pair.say(0, Message::Heartbeat(beat))), ["send HeartbeatReply"]);
    let state = pair.state(7);
    assert!(pair.give(Event::Frame { link: LINK, frame: state }).is_empty());
    assert!(pair.say(0, bye(ByeReason::Detach)).is_empty(), "too late to renounce");
    let out = pair.give(Event::ArbiterGranted { term: Term(2) });
    assert_eq!(effects(&out), ["close", "take over 2 at 5"]);
}

#[test]
fn the_operator_stops_it() {
    let mut pair = Pair::ready(true);
    assert_eq!(effects(&pair.give(Event::OperatorStop)), ["send Bye", "close", "stop"]);
    pair.refused(Event::OperatorStop);
}

/// P7: an operator's move that this side cannot make leaves the guest where it is.
#[test]
fn p7_a_move_to_a_standby_that_is_not_ready_is_given_up() {
    let mut pair = Pair::ready(true);
    assert_eq!(effects(&pair.give(Event::OperatorTakeOver)), ["ask 2"]);
    assert!(pair.refused(Event::OperatorTakeOver).expected.contains("already asked the arbiter"));
    assert_eq!(effects(&pair.give(not_ready())), ["send Bye", "close", "discard"]);
    assert_eq!(pair.phase(), Phase::Waiting);
}

/// P7: the same without an arbiter.
#[test]
fn p7_the_operator_is_refused_what_this_side_lacks() {
    for arbiter in [true, false] {
        let mut pair = Pair::ready(arbiter);
        if !arbiter {
            pair.give(lost());
        }
        let lack = Lack { reason: "no disk".into(), blocks: true };
        pair.give(Event::Resources { lack: Some(lack) });
        pair.refused(Event::OperatorTakeOver);
        pair.give(Event::Resources { lack: None });
        assert!(!effects(&pair.give(Event::OperatorTakeOver)).is_empty());
    }
}

/// P7: in a planned move the primary continues over the same link while the arbiter is asked again.
#[test]
fn p7_a_planned_move_keeps_its_link_while_the_arbiter_is_asked_again() {
    let mut pair = Pair::ready(true);
    pair.give(Event::OperatorTakeOver);
    pair.give(Event::ArbiterUnreachable { reason: "timeout".into() });
    pair.now = pair.standby.next_deadline().unwrap().0;
    assert_eq!(effects(&pair.give(Event::Tick)), ["ask 2"]);
}
