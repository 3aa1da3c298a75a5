//! A primary is joined.

use super::*;

#[test]
fn p7_what_the_guest_boots_comes_before_a_checkpoint_is_held() {
    let mut pair = Pair::filling_with(&[]);
    assert_eq!(effects(&pair.image(&[1, 2])), ["store [1, 2]"]);
    let bulk = pair.pages(Kind::Bulk, 0);
    pair.give(Event::Frame { link: LINK, frame: bulk });
    assert_eq!(effects(&pair.image(&[3, 4, 5])), ["store [3, 4, 5]"]);
    pair.checkpoint(5);
    assert_eq!(effects(&pair.give(Event::Applicable { epoch: Epoch(5) })), ["send Ack", "apply 5"]);

    let mut pair = Pair::filling_with(&[KERNEL]);
    assert_eq!(effects(&pair.image(&[4, 5])), ["store [4, 5]"]);
    pair.checkpoint(5);

    // The first checkpoint is not acknowledged while a byte is missing.
    let mut pair = Pair::filling_with(&[]);
    pair.image(&[1, 2, 3, 4]);
    let end = pair.data(5);
    let out = pair.say(5, Message::End(end));
    assert_eq!(effects(&out), ["send Refuse", "close", "discard"]);
    assert!(pair.standby.reason().unwrap().contains("1 bytes of kernel and initrd are missing"));
}

#[test]
fn p9_no_more_of_images_is_stored_than_was_announced_and_none_later() {
    let refused = ["send Refuse", "close", "discard"];
    let mut pair = Pair::filling_with(&[]);
    assert_eq!(effects(&pair.image(&[0; 6])), refused);
    let mut pair = Pair::filling_with(&[]);
    assert_eq!(effects(&pair.image(&[])), refused, "frames without end that bring nothing");
    let mut pair = Pair::filling_with(&[KERNEL, INITRD]);
    assert_eq!(effects(&pair.image(&[1])), refused);
    let mut pair = Pair::ready(true);
    assert_eq!(effects(&pair.image(&[1])), ["send Refuse", "close", "ask 2"]);
}

#[test]
fn p4_before_the_first_checkpoint_a_lost_link_leaves_nothing() {
    let mut pair = Pair::filling(true);
    assert_eq!(effects(&pair.give(lost())), ["close", "discard"]);
    assert_eq!(pair.phase(), Phase::Waiting);
    let mut pair = Pair::filling(true);
    pair.checkpoint(5);
    assert_eq!(effects(&pair.give(lost())), ["close", "discard"]);
    pair.refused(Event::Applicable { epoch: Epoch(5) });
}

#[test]
fn p2_an_older_primary_is_turned_away() {
    let mut pair = Pair::doubting();
    pair.give(Event::ArbiterDenied { term: Term(2), holder: "a".into() });
    let link = LinkId(2);
    pair.give(Event::Connected { link });
    let out = pair.give(Event::Frame { link, frame: frame(0, 1, Message::Hello(hello())) });
    assert_eq!(effects(&out), ["send Refuse", "close"]);
    assert!(
        pair.standby.reason().unwrap().contains("runs in term 1, but this standby knows of term 2")
    );
    assert_eq!(pair.phase(), Phase::Waiting);
    let link = LinkId(3);
    pair.give(Event::Connected { link });
    let mut newer = hello();
    newer.term = Term(2);
    let out = pair.give(Event::Frame { link, frame: frame(0, 2, Message::Hello(newer)) });
    assert_eq!(effects(&out), ["describe"]);
}

/// P2: an arbiter whose data went back grants a term again.
#[test]
fn p2_a_second_primary_of_the_same_term_is_turned_away() {
    let mut pair = Pair::filling(true);
    assert_eq!(effects(&pair.give(lost())), ["close", "discard"]);
    let mut other = hello();
    other.holder = "another".into();
    let link = LinkId(2);
    let say = |pair: &mut Pair, hello| {
        pair.give(Event::Frame { link, frame: frame(0, 1, Message::Hello(hello)) })
    };
    pair.give(Event::Connected { link });
    let out = say(&mut pair, other.clone());
    assert_eq!(effects(&out), ["send Refuse", "close"]);
    assert!(format!("{out:?}").contains("primary another runs in term 1"), "{out:?}");
    // Without an arbiter the numbers of terms mean nothing.
    let mut pair = Pair::waiting(false);
    for (link, holder) in [(LINK, "one"), (link, "another")] {
        let mut hello = hello();
        hello.holder = holder.into();
        hello.arbiter = handshake::ArbiterView::none();
        pair.give(Event::Connected { link });
        pair.give(Event::Frame { link, frame: frame(0, 1, Message::Hello(hello.clone())) });
        let out = pair.give(Event::Described { ours: hello });
        assert_eq!(effects(&out), ["send Welcome"]);
        pair.give(Event::LinkLost { link, reason: String::new() });
    }
}

#[test]
fn machines_that_do_not_fit_are_refused() {
    let greeting = || {
        let mut pair = Pair::waiting(true);
        pair.give(Event::Connected { link: LINK });
        pair.say(0, Message::Hello(hello()));
        pair
    };
    let mut pair = greeting();
    let mut ours = hello();
    ours.layout.cpus = 2;
    assert_eq!(effects(&pair.give(Event::Described { ours })), ["send Refuse", "close"]);
    assert!(pair.standby.reason().unwrap().contains("cpus: primary 1, standby 2"));
    let mut pair = greeting();
    let out = pair.give(Event::CannotHost { reason: "memory: 8 GiB of 4 GiB".into() });
    assert_eq!(effects(&out), ["send Refuse", "close"]);
    let mut pair = Pair::waiting(true);
    pair.refused(Event::Described { ours: hello() });
    // A release with another protocol is told so.
    pair.give(Event::Connected { link: LINK });
    let error = WireError::Version { found: 10 };
    let out = pair.give(Event::Garbled { link: LINK, error });
    let Some(Action::Send { frame, .. }) = out.first() else { panic!("{out:?}") };
    let Message::Refuse { reason } = &frame.message else { panic!("{frame:?}") };
    assert!(reason.contains("version 9, the other 10: run the same release"), "{reason}");
}

#[test]
fn one_primary_at_a_time() {
    let mut pair = Pair::ready(true);
    let out = pair.give(Event::Connected { link: LinkId(2) });
    assert_eq!(effects(&out), ["send Refuse", "close"]);
    assert!(matches!(out[0], Action::Send { link: LinkId(2), .. }));
    assert_eq!(pair.phase(), Phase::Ready);
    pair.refused(Event::Connected { link: LINK });
}

/// The reason of the last session does not apply to this one.
#[test]
fn a_session_begins_with_nothing_to_say() {
    let mut pair = Pair::filling(true);
    pair.give(lost());
    assert!(pair.standby.reason().is_some());
    let link = LinkId(2);
    pair.give(Event::Connected { link });
    pair.give(Event::Frame { link, frame: frame(0, 1, Message::Hello(hello())) });
    pair.give(Event::Described { ours: hello() });
    assert_eq!((pair.phase(), pair.standby.reason()), (Phase::Filling, None));
}

/// P2: in a known term only its holder may connect again; in a later term any primary may.
#[test]
fn p2_a_primary_comes_again_and_another_one_in_a_later_term() {
    for (term, holder, welcome) in
        [(1, "primary", true), (1, "another", false), (2, "primary", true), (2, "another", true)]
    {
        let mut pair = Pair::filling(true);
        pair.give(lost());
        let link = LinkId(2);
        pair.give(Event::Connected { link });
        let hello = Box::new(Hello { term: Term(term), holder: holder.into(), ..*hello() });
        let frame = frame(0, term, Message::Hello(hello));
        let out = effects(&pair.give(Event::Frame { link, frame }));
        assert_eq!(out == ["describe"], welcome, "{term}, {holder}: {out:?}");
    }
}

/// The driver describes this side's machine; the session is the primary's.
#[test]
fn a_welcome_is_of_this_protocol_and_of_the_primarys_session() {
    let mut pair = Pair::waiting(true);
    pair.give(Event::Connected { link: LINK });
    pair.say(0, Message::Hello(hello()));
    let options = handshake::SessionOptions { verify: false };
    let (protocol, term) = (PROTOCOL + 1, Term(7));
    let ours = Box::new(Hello { protocol, term, session: 5, options, ..*hello() });
    let out = pair.give(Event::Described { ours });
    let Some(Action::Send { frame, .. }) = out.first() else { panic!("{out:?}") };
    assert_eq!(frame.message, Message::Welcome(hello()));
}
