//! What a standby lacks (P7).

use super::*;

/// P7: a standby that could not continue the guest reports that while it lasts.
#[test]
fn what_it_lacks_is_said_to_the_primary() {
    let mut pair = Pair::ready(true);
    let out = pair.give(lacks(true));
    let lack = Some("disk: gone".into());
    let said = Message::Readiness { lack, session: SESSION, from: STANDBY_SESSION };
    assert!(
        matches!(&out[..], [Action::Report(_), Action::Send { frame, .. }] if frame.message == said),
        "{out:?}"
    );
    assert!(pair.give(lacks(true)).is_empty(), "once");
    // It continues to receive.
    pair.checkpoint(6);
    assert_eq!(effects(&pair.give(Event::Applicable { epoch: Epoch(6) })), ["send Ack", "apply 6"]);
    pair.refused(Event::OperatorTakeOver);
    assert_eq!(effects(&pair.give(Event::Resources { lack: None })), ["send Readiness"]);

    // From the start of a session on. If the guest could not run without what is missing, there is
    // no session.
    let mut pair = Pair::waiting(true);
    assert!(effects(&pair.give(lacks(false))).is_empty());
    pair.give(Event::Connected { link: LINK });
    pair.say(0, Message::Hello(hello()));
    let out = pair.give(Event::Described { ours: hello() });
    assert_eq!(effects(&out), ["send Welcome", "send Readiness"]);
    let mut pair = Pair::waiting(true);
    pair.give(lacks(true));
    pair.give(Event::Connected { link: LINK });
    pair.say(0, Message::Hello(hello()));
    let out = pair.give(Event::Described { ours: hello() });
    assert_eq!(effects(&out), ["send Refuse", "close"]);
    assert!(pair.standby.reason().unwrap().contains("disk: gone"));
}

/// P7: it must not take the right from a primary that may be alive, if it cannot use the right.
#[test]
fn without_its_disk_it_does_not_ask_for_the_right() {
    let mut pair = Pair::ready(true);
    pair.give(lacks(true));
    assert_eq!(effects(&pair.give(lost())), ["close"]);
    assert_eq!(pair.phase(), Phase::Doubting);
    assert!(pair.standby.is_held_back() && pair.standby.next_deadline().is_none());
    pair.refused(Event::ArbiterGranted { term: Term(2) });
    assert_eq!(effects(&pair.give(Event::Resources { lack: None })), ["ask 2"]);
    assert_eq!(effects(&pair.give(Event::ArbiterGranted { term: Term(2) })), ["take over 2 at 5"]);

    // The primary was alive, and returns in a later term: the held checkpoint is of no more use.
    let mut pair = Pair::ready(true);
    pair.give(lacks(true));
    pair.give(lost());
    let link = LinkId(2);
    assert!(pair.give(Event::Connected { link }).is_empty());
    let mut later = hello();
    later.term = Term(2);
    let frame = frame(0, 2, Message::Hello(later.clone()));
    assert_eq!(effects(&pair.give(Event::Frame { link, frame })), ["discard", "describe"]);
    assert!(!pair.standby.is_held_back());
    assert_eq!(effects(&pair.give(Event::Described { ours: later })), ["send Refuse", "close"]);
    assert_eq!(pair.phase(), Phase::Waiting);

    // A lack that the guest can run with does not prevent the question.
    let mut pair = Pair::ready(true);
    pair.give(lacks(false));
    assert_eq!(effects(&pair.give(lost())), ["close", "ask 2"]);
}

/// P7: something else that it needs is missing by now.
#[test]
fn p7_any_missing_resource_that_it_needs_holds_it_back() {
    let mut pair = Pair::ready(true);
    pair.give(lacks(true));
    pair.give(lost());
    let lack = Some(Lack { reason: "tap0: gone".into(), blocks: true });
    assert_eq!(effects(&pair.give(Event::Resources { lack })), [""; 0]);
    assert!(pair.standby.is_held_back());
    pair.give(Event::OperatorStop);
    assert_eq!(pair.standby.reason(), Some("stopped by the operator"));
}
