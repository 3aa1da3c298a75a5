//! One of the two sides leaves.

use super::*;

#[test]
fn a_planned_detach_needs_no_arbiter_when_the_standby_agrees() {
    let mut pair = Pair::at(true, Phase::Protected);
    assert_eq!(effects(&pair.give(Event::OperatorRunAlone)), ["send Bye"]);
    let out = pair.say(0, bye(ByeReason::Detached));
    assert_eq!(effects(&out), ["close", "alone 1"]);
    assert_eq!(pair.primary.next_deadline(), None, "no standby is wanted any more");
}

#[test]
fn p2_a_detach_without_the_standbys_word_goes_to_the_arbiter() {
    let mut pair = Pair::at(true, Phase::Detaching);
    let (mut asked, mut beats) = (false, 0);
    while !asked && beats < 1000 {
        pair.now = pair.primary.next_deadline().unwrap().0;
        let out = effects(&pair.give(Event::Tick));
        asked = out.contains(&"ask 2".into());
        if !asked {
            beats += 1;
            pair.say(0, Message::HeartbeatReply(Heartbeat { sequence: beats, sent: 0 }));
        }
    }
    assert!(asked && beats > 100, "after {beats} signs of life");
}

#[test]
fn a_standby_that_leaves_on_purpose_frees_the_primary() {
    let mut pair = Pair::at(true, Phase::Protected);
    let out = pair.say(0, bye(ByeReason::Stopped));
    assert_eq!(effects(&out), ["close", "alone 1"]);
    assert!(pair.primary.next_deadline().is_some(), "another standby is looked for");
}

#[test]
fn power_off_and_stop_tell_the_standby() {
    for event in [Event::GuestPoweredOff, Event::OperatorStop] {
        let mut pair = Pair::at(true, Phase::Protected);
        assert_eq!(effects(&pair.give(event)), ["send Bye", "close", "stop fenced=false"]);
        assert_eq!(pair.phase(), Phase::Stopped);
    }
    assert_eq!(effects(&Pair::alone(true).give(Event::OperatorStop)), ["stop fenced=false"]);
}

/// P1: on a link without authentication a message of an earlier session can be replayed while the
/// standby of this session holds a checkpoint.
#[test]
fn p1_a_bye_to_another_session_opens_nothing() {
    for (phase, reason) in
        [(Phase::Protected, ByeReason::Detached), (Phase::Detaching, ByeReason::Stopped)]
    {
        // From one of this side's earlier sessions; or from another standby, to which an attacker
        // has replayed this session.
        for (session, from) in [(SESSION - 1, STANDBY_SESSION), (SESSION, STANDBY_SESSION + 1)] {
            let mut pair = Pair::at(true, phase);
            let out = pair.say(0, Message::Bye { reason, session, from, why: String::new() });
            assert_eq!(effects(&out), ["send Refuse", "hold", "close", "ask 2"]);
        }
    }
}

/// A standby that leaves before it has sent its number for the session names none.
#[test]
fn a_standby_that_leaves_before_its_welcome_is_looked_for_again() {
    let mut pair = Pair::at(true, Phase::Joining);
    let (reason, why) = (ByeReason::Stopped, String::new());
    let out = pair.say(0, Message::Bye { reason, session: SESSION, from: 0, why });
    assert_eq!(effects(&out), ["close"]);
    assert_eq!(pair.primary.reason(), Some("the standby was stopped by its operator"));
}
