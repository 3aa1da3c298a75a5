//! The arbiter, the operator in its place, and the fence.

use super::*;

#[test]
fn p2_after_it_the_next_term_must_be_won() {
    for phase in [Phase::Arming, Phase::Protected, Phase::Detaching] {
        let mut pair = Pair::at(true, phase);
        assert_eq!(effects(&pair.give(lost())), ["hold", "close", "ask 2"], "{phase:?}");
        assert_eq!(pair.phase(), Phase::Doubting);
        let out = pair.give(Event::ArbiterGranted { term: Term(2) });
        assert_eq!(effects(&out), ["alone 2"]);
        assert_eq!((pair.phase(), pair.primary.term()), (Phase::Alone, Term(2)));
    }
}

#[test]
fn p2_a_machine_that_loses_the_term_stops_for_ever() {
    let mut pair = Pair::doubting();
    let out = pair.give(Event::ArbiterDenied { term: Term(2), holder: "standby@b".into() });
    assert_eq!(effects(&out), ["hold", "stop fenced=true"]);
    assert_eq!(pair.primary.reason(), Some("term 2 is held by standby@b"));
    pair.refused(Event::Tick);
    pair.refused(Event::ArbiterGranted { term: Term(2) });
}

#[test]
fn p1_an_arbiter_that_does_not_answer_is_asked_again_and_nothing_leaves() {
    let mut pair = Pair::doubting();
    let mut delays = Vec::new();
    for _ in 0..8 {
        let out = pair.give(Event::ArbiterUnreachable { reason: "timeout".into() });
        assert_eq!(effects(&out), [""; 0]);
        pair.refused(Event::ArbiterGranted { term: Term(2) });
        let retry = pair.primary.next_deadline().unwrap();
        delays.push((retry.0 - pair.now) / MS);
        pair.now = retry.0;
        assert_eq!(effects(&pair.give(Event::Tick)), ["ask 2"]);
        assert_eq!(effects(&pair.give(Event::Tick)), [""; 0], "one question at a time");
    }
    assert_eq!(delays, [50, 100, 200, 400, 800, 1600, 2000, 2000]);
    assert_eq!(effects(&pair.give(Event::ArbiterGranted { term: Term(2) })), ["alone 2"]);
}

#[test]
fn p2_without_an_arbiter_the_operator_decides() {
    let mut pair = Pair::waiting();
    assert_eq!(pair.phase(), Phase::WaitingForOperator);
    assert_eq!(effects(&pair.give(Event::Tick)), [""; 0]);
    assert_eq!(effects(&pair.give(Event::OperatorRunAlone)), ["alone 2"]);
    let mut pair = Pair::waiting();
    assert_eq!(effects(&pair.give(Event::OperatorStop)), ["stop fenced=false"]);
}

#[test]
fn the_operator_does_not_overrule_an_arbiter() {
    let illegal = Pair::doubting().refused(Event::OperatorRunAlone);
    assert_eq!(
        illegal.to_string(),
        "the primary in state `doubting` was given `operator: run alone`: the standby or the \
         arbiter has been asked, and its answer decides"
    );
}

#[test]
fn p2_a_fence_that_has_fallen_stops_at_once() {
    for phase in [Phase::Alone, Phase::Protected] {
        let mut pair = Pair::at(true, phase);
        let out = pair.give(Event::Fenced { reason: "term 2 is held by b".into() });
        let names = effects(&out);
        assert_eq!(names.first().unwrap(), "hold");
        assert_eq!(names.last().unwrap(), "stop fenced=true");
    }
}

#[test]
fn answers_without_a_question_are_illegal() {
    let mut pair = Pair::at(true, Phase::Protected);
    pair.refused(Event::ArbiterGranted { term: Term(2) });
    pair.refused(Event::ArbiterUnreachable { reason: "?".into() });
    pair.refused(Event::PrecopyDone { link: LINK });
    let mut pair = Pair::doubting();
    pair.refused(Event::ArbiterGranted { term: Term(3) });
    pair.refused(Event::ArbiterDenied { term: Term(1), holder: "b".into() });
}

/// The status gives the arbiter's failure for as long as it lasts.
#[test]
fn an_arbiter_that_does_not_answer_is_in_the_status() {
    let mut pair = Pair::doubting();
    let lost = "the link to the standby was lost: reset by peer";
    assert_eq!(pair.primary.reason(), Some(lost));
    pair.give(Event::ArbiterUnreachable { reason: "timeout".into() });
    let both = format!("{lost}; the arbiter is unreachable: timeout");
    assert_eq!(pair.primary.reason(), Some(both.as_str()));
    pair.now += 50 * MS;
    pair.give(Event::Tick);
    pair.give(Event::ArbiterGranted { term: Term(2) });
    assert_eq!(pair.primary.reason(), Some(lost));

    // A machine that was stalled when it lost its standby asks later, and then as often as any
    // other.
    let mut pair = Pair::at(true, Phase::Protected);
    pair.give(stalled());
    pair.now = pair.primary.next_deadline().unwrap().0;
    assert_eq!(effects(&pair.give(Event::Tick)), ["ask 2"]);
    pair.give(Event::ArbiterUnreachable { reason: "timeout".into() });
    assert_eq!(pair.primary.next_deadline(), Some(Time(pair.now + 50 * MS)));
}
