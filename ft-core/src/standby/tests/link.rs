//! Messages, silence and the loss of the link.

use super::*;

#[test]
fn silence_is_suspicious_and_signs_of_life_are_not() {
    let mut pair = Pair::ready(true);
    for sequence in 0..20 {
        pair.now += 400 * MS;
        assert!(pair.give(Event::Tick).is_empty());
        let beat = Heartbeat { sequence, sent: 3 };
        let out = pair.say(0, Message::Heartbeat(beat));
        assert!(matches!(&out[..], [Action::Send { frame, .. }]
            if frame.message == Message::HeartbeatReply(beat)));
    }
    pair.now += 500 * MS + 1;
    assert_eq!(effects(&pair.give(Event::Tick)), ["close", "ask 2"]);
    let mut pair = Pair::filling(true);
    pair.now += 10_000 * MS + 1;
    assert_eq!(effects(&pair.give(Event::Tick)), ["close", "discard"]);
}

/// Over a slow link a frame takes longer than the timeout, and heartbeats wait behind it.
#[test]
fn while_bytes_come_both_sides_live() {
    let mut pair = Pair::ready(true);
    for beat in 1..=20 {
        pair.now += 60 * MS;
        let out = pair.give(Event::Progress { link: LINK });
        let [Action::Send { frame, .. }] = &out[..] else { panic!("{out:?}") };
        let heartbeat = Heartbeat { sequence: beat, sent: pair.now };
        assert_eq!(frame.message, Message::Heartbeat(heartbeat));
        // Not more often than the interval.
        assert!(pair.give(Event::Progress { link: LINK }).is_empty());
        assert!(pair.give(Event::Tick).is_empty());
    }
    // Whole frames of data show that the primary is alive, too.
    pair.now += 60 * MS;
    let state = pair.state(6);
    let out = pair.give(Event::Frame { link: LINK, frame: state });
    assert_eq!(effects(&out), ["send Heartbeat"]);
    pair.now += 501 * MS;
    assert!(pair.give(Event::Progress { link: LinkId(9) }).is_empty());
    assert_eq!(effects(&pair.give(Event::Tick)), ["close", "ask 2"]);
    assert_eq!(Pair::waiting(true).standby.sign_of_life(Time(0)), None);
}

#[test]
fn p2_a_primary_that_leaves_on_purpose_is_not_replaced() {
    for reason in [ByeReason::PoweredOff, ByeReason::Stopped] {
        let mut pair = Pair::ready(true);
        assert_eq!(effects(&pair.say(0, bye(reason))), ["close", "stop"]);
    }
    let mut pair = Pair::ready(true);
    let out = pair.say(0, bye(ByeReason::Detach));
    assert_eq!(effects(&out), ["send Bye", "close", "discard"]);
    assert_eq!((pair.phase(), pair.standby.epoch()), (Phase::Waiting, None));
    assert!(pair.give(lost()).is_empty());
}

/// P4: a Bye of another session does not give up a checkpoint.
#[test]
fn p4_a_bye_to_another_session_discards_nothing() {
    for reason in [ByeReason::Detach, ByeReason::PoweredOff, ByeReason::Stopped] {
        for (session, from) in [(SESSION, SESSION), (STANDBY_SESSION, SESSION + 1)] {
            let mut pair = Pair::ready(true);
            let out = pair.say(0, Message::Bye { reason, session, from, why: String::new() });
            assert_eq!(effects(&out), ["send Refuse", "close", "ask 2"]);
            assert!(pair.standby.epoch().is_some());
        }
    }
}

/// A primary that leaves before it has received this side's number names none: that ends only its
/// session.
#[test]
fn a_bye_before_the_welcome_was_heard_ends_the_session() {
    let mut pair = Pair::filling(true);
    let (reason, why) = (ByeReason::PoweredOff, String::new());
    let out = pair.say(0, Message::Bye { reason, session: 0, from: SESSION, why });
    assert_eq!(effects(&out), ["close", "discard"]);
    assert_eq!(pair.standby.phase(), Phase::Waiting);
}
