//! Messages, silence and the loss of the link.

use super::*;

#[test]
fn p2_another_term_in_a_frame_breaks_the_link() {
    let mut pair = Pair::at(true, Phase::Protected);
    pair.give(Event::Sealed { link: LINK, epoch: Epoch(6) });
    let out = pair.give(Event::Frame { link: LINK, frame: frame(6, 2, Message::Ack) });
    assert_eq!(effects(&out), ["send Refuse", "hold", "close", "ask 2"]);
}

#[test]
fn p2_a_machine_that_slept_takes_no_old_acknowledgement() {
    let mut pair = Pair::at(true, Phase::Protected);
    pair.give(Event::Sealed { link: LINK, epoch: Epoch(6) });
    pair.now = 501 * MS;
    assert_eq!(effects(&pair.say(6, Message::Ack)), ["hold", "close", "ask 2"]);
}

/// Over a slow link a frame takes longer than the timeout: its bytes show that the standby is
/// alive.
#[test]
fn bytes_are_a_sign_of_life() {
    let mut pair = Pair::at(true, Phase::Protected);
    for _ in 0..10 {
        pair.now += 400 * MS;
        assert_eq!(effects(&pair.give(Event::Progress { link: LINK })), [""; 0]);
    }
    assert_eq!(pair.phase(), Phase::Protected);
    // P2: but not after this side slept, and not bytes of another link.
    pair.give(Event::Progress { link: LinkId(9) });
    pair.now += 501 * MS;
    assert_eq!(effects(&pair.give(Event::Progress { link: LINK })), ["hold", "close", "ask 2"]);
}

#[test]
fn silence_is_suspicious_and_signs_of_life_are_not() {
    let mut pair = Pair::at(true, Phase::Protected);
    for beat in 1..=20 {
        pair.now = pair.primary.next_deadline().unwrap().0;
        let out = pair.give(Event::Tick);
        let [Action::Send { frame, .. }] = &out[..] else { panic!("{out:?}") };
        let Message::Heartbeat(sent) = frame.message else { panic!("{frame:?}") };
        assert_eq!((sent.sequence, sent.sent), (beat, pair.now));
        assert_eq!(effects(&pair.say(0, Message::HeartbeatReply(sent))), [""; 0]);
    }
    pair.now += 500 * MS;
    assert_eq!(effects(&pair.give(Event::Tick)), ["send Heartbeat"]);
    pair.now += 1;
    assert_eq!(effects(&pair.give(Event::Tick)), ["hold", "close", "ask 2"]);
}

#[test]
fn what_a_closed_link_still_says_is_ignored() {
    let mut pair = Pair::doubting();
    assert!(pair.give(lost()).is_empty());
    assert!(pair.say(6, Message::Ack).is_empty());
    let error = WireError::Magic { found: [0; 4] };
    assert!(pair.give(Event::Garbled { link: LINK, error }).is_empty());
}

#[test]
fn garbage_is_a_lost_link() {
    let mut pair = Pair::at(true, Phase::Protected);
    let error = WireError::Magic { found: [0; 4] };
    let out = pair.give(Event::Garbled { link: LINK, error });
    assert_eq!(effects(&out), ["hold", "close", "ask 2"]);
}
