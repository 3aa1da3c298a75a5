//! The arbiter.

use super::*;

#[test]
fn p2_after_it_the_next_term_must_be_won() {
    let mut pair = Pair::doubting();
    assert_eq!(effects(&pair.give(Event::ArbiterGranted { term: Term(2) })), ["take over 2 at 5"]);
    assert_eq!(pair.phase(), Phase::Active);
    pair.refused(Event::Tick);
    let mut pair = Pair::doubting();
    let out = pair.give(Event::ArbiterDenied { term: Term(2), holder: "a".into() });
    assert_eq!(effects(&out), ["discard"]);
    assert_eq!(
        (pair.phase(), pair.standby.term(), pair.standby.epoch()),
        (Phase::Waiting, Term(2), None)
    );
}

#[test]
fn an_arbiter_that_does_not_answer_is_asked_again() {
    let mut pair = Pair::doubting();
    assert!(effects(&pair.give(Event::ArbiterUnreachable { reason: "timeout".into() })).is_empty());
    assert_eq!(effects(&pair.give(Event::Tick)), [""; 0]);
    pair.now = pair.standby.next_deadline().unwrap().0;
    assert_eq!(effects(&pair.give(Event::Tick)), ["ask 2"]);
    pair.refused(Event::ArbiterGranted { term: Term(3) });
}

/// P2, P4: a side that cannot continue does not win a term.
#[test]
fn p4_a_standby_that_cannot_continue_does_not_take_the_term() {
    let mut pair = Pair::ready(true);
    assert_eq!(effects(&pair.give(lost())), ["close", "ask 2"]);
    let cannot = || Event::CannotGoOn { reason: "KVM refuses it".into() };
    assert_eq!(effects(&pair.give(cannot())), ["discard"]);
    assert_eq!((pair.standby.epoch(), pair.standby.phase()), (None, Phase::Waiting));
    assert!(pair.standby.reason().unwrap().contains("KVM refuses it"));
    pair.refused(Event::ArbiterGranted { term: Term(2) });
    pair.refused(cannot());

    // Without an arbiter the checkpoint is kept: no other machine may have the guest.
    let mut pair = Pair::ready(false);
    pair.give(lost());
    assert_eq!(effects(&pair.give(cannot())), [""; 0]);
    assert_eq!(pair.standby.epoch(), Some(Epoch(5)));
    assert_eq!(effects(&pair.give(Event::OperatorTakeOver)), ["take over 2 at 5"]);
}

/// P9: the side neither asks nor gives up. It tries again, and meanwhile a primary that was allowed
/// to continue may connect.
#[test]
fn p9_a_standby_that_is_not_ready_tries_again() {
    let mut pair = Pair::doubting();
    assert_eq!(effects(&pair.give(not_ready())), [""; 0]);
    assert_eq!((pair.phase(), pair.standby.epoch()), (Phase::Doubting, Some(Epoch(5))));
    assert!(pair.standby.is_held_back());
    assert!(pair.standby.reason().unwrap().contains("tap0 is busy"));
    pair.refused(Event::ArbiterGranted { term: Term(2) });
    pair.now = pair.standby.next_deadline().unwrap().0;
    assert_eq!(effects(&pair.give(Event::Tick)), ["ask 2"]);
    pair.give(not_ready());
    pair.give(Event::Connected { link: LinkId(2) });
    pair.now = pair.standby.next_deadline().unwrap().0;
    assert_eq!(effects(&pair.give(Event::Tick)), ["close", "ask 2"]);
    // P2: until there is an answer no primary is let in. It could make this side give up its
    // checkpoint, and the term would then be won in vain.
    assert!(!pair.standby.is_held_back());
    let out = pair.give(Event::Connected { link: LinkId(3) });
    assert_eq!(effects(&out), ["send Refuse", "close"]);
    assert_eq!(effects(&pair.give(Event::ArbiterGranted { term: Term(2) })), ["take over 2 at 5"]);
}

/// P9: an answer without a question is refused; and failures are retried at growing intervals.
#[test]
fn p9_a_standby_that_was_not_ready_asks_ever_later() {
    let mut pair = Pair::doubting();
    let mut delays = Vec::new();
    for _ in 0..3 {
        pair.give(not_ready());
        let retry = pair.standby.next_deadline().unwrap().0;
        delays.push((retry - pair.now) / MS);
        pair.now = retry;
        pair.give(Event::Tick);
    }
    assert_eq!(delays, [50, 100, 200]);

    let mut pair = Pair::ready(true);
    pair.give(Event::OperatorTakeOver);
    pair.give(not_ready());
    pair.refused(Event::ArbiterUnreachable { reason: "timeout".into() });

    let mut pair = Pair::ready(false);
    pair.give(lost());
    pair.give(Event::CannotGoOn { reason: "KVM refuses it".into() });
    assert!(pair.standby.reason().unwrap().contains("KVM refuses it"));
}

/// P9: an arbiter that does not answer is asked at growing intervals, and its failure is the reason
/// until it answers.
#[test]
fn p9_an_arbiter_that_does_not_answer_is_asked_ever_later() {
    let mut pair = Pair::doubting();
    let mut delays = Vec::new();
    for _ in 0..3 {
        pair.give(Event::ArbiterUnreachable { reason: "timeout".into() });
        assert!(pair.standby.reason().unwrap().ends_with("the arbiter is unreachable: timeout"));
        let retry = pair.standby.next_deadline().unwrap().0;
        delays.push((retry - pair.now) / MS);
        pair.now = retry;
        assert_eq!(effects(&pair.give(Event::Tick)), ["ask 2"]);
    }
    assert_eq!(delays, [50, 100, 200]);
    pair.give(Event::ArbiterGranted { term: Term(2) });
    assert!(!pair.standby.reason().unwrap().contains("timeout"));
}
