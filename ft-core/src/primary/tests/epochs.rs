//! Epochs are sealed, acknowledged and compared.

use super::*;

#[test]
fn p1_acknowledgements_come_in_order_and_for_sealed_epochs_only() {
    for (sealed, acked) in [(6, 5), (6, 7), (7, 7)] {
        let mut pair = Pair::at(true, Phase::Protected);
        for epoch in 6..=sealed {
            pair.give(Event::Sealed { link: LINK, epoch: Epoch(epoch) });
        }
        let out = pair.say(acked, Message::Ack);
        assert_eq!(effects(&out), ["send Refuse", "hold", "close", "ask 2"], "{sealed} {acked}");
    }
}

#[test]
fn p1_an_acknowledgement_before_anything_was_sealed_releases_nothing() {
    for phase in [Phase::Joining, Phase::Copying, Phase::Sealing] {
        let mut pair = Pair::at(true, phase);
        let out = pair.say(5, Message::Ack);
        assert!(!names(&out).iter().any(|name| name.starts_with("release")), "{phase:?}");
        assert_eq!(pair.phase(), Phase::Alone);
    }
}

#[test]
fn back_pressure() {
    let mut pair = Pair::at(true, Phase::Protected);
    for epoch in [6, 7] {
        assert!(pair.primary.may_seal());
        pair.give(Event::Sealed { link: LINK, epoch: Epoch(epoch) });
    }
    assert!(!pair.primary.may_seal());
    pair.refused(Event::Sealed { link: LINK, epoch: Epoch(8) });
    pair.say(6, Message::Ack);
    assert!(pair.primary.may_seal());
}

#[test]
fn epochs_are_sealed_without_a_gap() {
    let mut pair = Pair::at(true, Phase::Protected);
    pair.refused(Event::Sealed { link: LINK, epoch: Epoch(7) });
    pair.refused(Event::Sealed { link: LINK, epoch: Epoch(5) });
    let mut pair = Pair::alone(true);
    pair.refused(Event::Sealed { link: LINK, epoch: Epoch(0) });
}

#[test]
fn epoch_numbers_continue_in_the_next_session() {
    let mut pair = Pair::doubting();
    pair.give(Event::ArbiterGranted { term: Term(2) });
    let link = LinkId(2);
    pair.give(Event::StandbyConnected { link, hello: hello() });
    let mut welcome = hello();
    welcome.term = Term(2);
    pair.give(Event::Frame { link, frame: frame(0, 2, Message::Welcome(welcome)) });
    pair.give(Event::PrecopyDone { link });
    pair.refused(Event::Sealed { link, epoch: Epoch(5) });
    pair.give(Event::Sealed { link, epoch: Epoch(9) });
    let out = pair.give(Event::Frame { link, frame: frame(9, 2, Message::Ack) });
    assert_eq!(effects(&out), ["release 9"]);
}

/// P4: what the driver did for an ended session does not count for another one.
#[test]
fn p4_what_comes_late_of_an_old_link_is_not_the_new_ones() {
    let mut pair = Pair::at(true, Phase::Copying);
    assert_eq!(effects(&pair.give(lost())), ["close"]);
    let link = LinkId(2);
    pair.give(Event::StandbyConnected { link, hello: hello() });
    pair.give(Event::Frame { link, frame: frame(0, 1, Message::Welcome(hello())) });
    assert_eq!(effects(&pair.give(Event::PrecopyDone { link: LINK })), [""; 0]);
    assert_eq!(pair.phase(), Phase::Copying, "memory has not been sent over this link");
    pair.give(Event::PrecopyDone { link });
    pair.refused(Event::Sealed { link: LINK, epoch: Epoch(5) });
    assert_eq!(pair.phase(), Phase::Sealing);
    pair.give(Event::Sealed { link, epoch: Epoch(6) });
    let out = pair.give(Event::Frame { link, frame: frame(6, 1, Message::Ack) });
    assert_eq!(effects(&out), ["release 6"]);
}

#[test]
fn comparisons_are_reported() {
    let mut pair = Pair::at(true, Phase::Protected);
    let hashes = Hashes { memory: 1, state: 2 };
    let verified = Verified { agree: true, primary: hashes, standby: hashes };
    let out = pair.say(5, Message::Verified(verified));
    let [Action::Report(report)] = &out[..] else { panic!("{out:?}") };
    assert!(report.to_string().starts_with("epoch 5: hashes agree: primary memory 0000"));
}

/// P7: output waits for the acknowledgement, so this wait has a limit.
#[test]
fn p7_a_standby_that_lives_and_never_acknowledges_is_given_up() {
    let mut pair = Pair::at(true, Phase::Arming);
    let limit = u64::try_from(PrimaryOptions::default().ack_timeout.as_nanos()).unwrap();
    for beats in 1.. {
        pair.now = pair.primary.next_deadline().unwrap().0;
        let out = effects(&pair.give(Event::Tick));
        if pair.now >= limit {
            assert_eq!(out, ["send Refuse", "hold", "close", "ask 2"]);
            assert!(pair.primary.reason().unwrap().contains("epoch 5 has not been acknowledged"));
            break;
        }
        assert_eq!(pair.phase(), Phase::Arming);
        pair.say(0, Message::HeartbeatReply(Heartbeat { sequence: beats, sent: 0 }));
    }
}

/// P1: an acknowledgement over a link of a former session does not count.
#[test]
fn p1_what_a_former_link_still_says_is_not_heard() {
    for phase in [Phase::Arming, Phase::Protected] {
        let mut pair = Pair::at(true, phase);
        if phase == Phase::Protected {
            pair.give(Event::Sealed { link: LINK, epoch: Epoch(6) });
        }
        let (acknowledged, in_flight) = (pair.primary.acknowledged(), pair.primary.in_flight());
        let next = if phase == Phase::Arming { 5 } else { 6 };
        let frame = frame(next, 1, Message::Ack);
        assert!(pair.give(Event::Frame { link: LinkId(9), frame }).is_empty());
        assert_eq!(pair.primary.acknowledged(), acknowledged);
        assert_eq!((pair.primary.in_flight(), pair.phase()), (in_flight, phase));
    }
}

/// P8: a standby that holds different data is not relied on once this is known. It is asked to give
/// up its checkpoint if it does not do so by itself.
#[test]
fn p8_a_standby_that_differs_is_not_relied_upon() {
    let (primary, standby) = (Hashes { memory: 1, state: 1 }, Hashes { memory: 2, state: 1 });
    let differ = || Message::Verified(Verified { agree: false, primary, standby });
    let mut pair = Pair::at(true, Phase::Protected);
    assert_eq!(effects(&pair.say(5, differ())), ["send Bye"]);
    assert_eq!(pair.phase(), Phase::Detaching);
    let why = "epoch 5 is not the same on both sides".to_string();
    let bye =
        Message::Bye { reason: ByeReason::Detached, session: SESSION, from: STANDBY_SESSION, why };
    assert_eq!(effects(&pair.say(0, bye)), ["close", "alone 1"]);
    assert!(pair.primary.reason().unwrap().contains("epoch 5 is not the same"));
    // Not at once: the next session may fail in the same way.
    let again = pair.primary.next_deadline().unwrap();
    assert!(again >= Time(0) + Duration::from_secs(5), "{again:?}");
    assert_eq!(effects(&pair.give(Event::Tick)), [""; 0]);

    // A standby that does not answer: the arbiter decides.
    let mut pair = Pair::at(true, Phase::Protected);
    pair.say(5, differ());
    pair.now += 10_000 * MS;
    assert_eq!(effects(&pair.give(Event::Tick)).last().map(String::as_str), Some("ask 2"));
}

/// P8: the status says why a standby must give up its checkpoint from the moment it is asked to.
#[test]
fn p8_the_status_says_that_both_sides_differ() {
    let (primary, standby) = (Hashes { memory: 1, state: 1 }, Hashes { memory: 2, state: 1 });
    let mut pair = Pair::at(true, Phase::Protected);
    pair.say(5, Message::Verified(Verified { agree: false, primary, standby }));
    assert!(pair.primary.reason().unwrap().contains("differs from this side's"));
}
