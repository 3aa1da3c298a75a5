//! Hashes are compared (P8).

use super::*;

#[test]
fn hashes_are_compared() {
    for (hash, agree) in [(5, true), (4, false)] {
        let mut pair = Pair::ready(true);
        pair.refused(Event::Hashed { epoch: Epoch(4), hashes: Hashes { memory: 5, state: 5 } });
        let hashes = Hashes { memory: hash, state: 5 };
        let out = pair.give(Event::Hashed { epoch: Epoch(5), hashes });
        let Some(Action::Send { frame, .. }) = out.first() else { panic!("{out:?}") };
        let Message::Verified(verified) = frame.message else { panic!("{frame:?}") };
        assert_eq!((verified.agree, frame.epoch), (agree, Epoch(5)));
        pair.refused(Event::Hashed { epoch: Epoch(5), hashes });
    }
}

/// P8: a checkpoint that differs between the sides is never continued from, whatever happens to the
/// link.
#[test]
fn p8_a_checkpoint_that_differs_is_given_up() {
    let mut pair = Pair::ready(true);
    let out = pair.give(Event::Hashed { epoch: Epoch(5), hashes: Hashes { memory: 4, state: 5 } });
    assert_eq!(effects(&out), ["send Verified", "send Bye", "close", "discard"]);
    assert_eq!((pair.standby.epoch(), pair.standby.phase()), (None, Phase::Waiting));
    let reason = pair.standby.reason().unwrap();
    assert!(reason.contains("epoch 5 is not the same on both sides"), "{reason}");
    let Some(Action::Send { frame, .. }) = out.get(2) else { panic!("{out:?}") };
    let Message::Bye { reason, session, from, why } = &frame.message else { panic!("{frame:?}") };
    let expected = (ByeReason::Detached, SESSION, STANDBY_SESSION);
    assert_eq!((*reason, *session, *from), expected);
    assert!(why.contains("0000000000000004"), "{why}");
}

/// P8: data that could not be compared counts as different.
#[test]
fn p8_a_checkpoint_that_cannot_be_compared_is_given_up() {
    let mut pair = Pair::ready(true);
    pair.refused(Event::CannotHash { epoch: Epoch(4), reason: "?".into() });
    let out = pair.give(Event::CannotHash { epoch: Epoch(5), reason: "a device refuses".into() });
    assert_eq!(effects(&out), ["send Bye", "close", "discard"]);
}
