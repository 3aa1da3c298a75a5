//! A standby is joined, and gets its first checkpoint.

use super::*;

#[test]
fn a_standby_is_sent_the_images_that_it_lacks() {
    let kernel = ImageId { size: 3, sha256: [1; 32] };
    let initrd = ImageId { size: 2, sha256: [2; 32] };
    let boot = BootSource { kernel, initrd: Some(initrd), cmdline: "quiet".into() };
    for (images, expected) in [
        (Vec::new(), "precopy and 2 images"),
        (Vec::from([initrd]), "precopy and 1 images"),
        (Vec::from([initrd, kernel]), "precopy"),
    ] {
        let mut pair = Pair::alone(true);
        let ours = Hello { boot: Some(boot.clone()), ..*hello() };
        pair.give(Event::StandbyConnected { link: LINK, hello: Box::new(ours) });
        let theirs = Hello { images, ..*hello() };
        assert_eq!(effects(&pair.say(0, Message::Welcome(Box::new(theirs)))), [expected]);
    }
}

#[test]
fn the_way_to_protection() {
    let mut pair = Pair::alone(true);
    let out = pair.give(Event::StandbyConnected { link: LINK, hello: hello() });
    assert_eq!(effects(&out), ["send Hello"]);
    assert_eq!(pair.phase(), Phase::Joining);
    let out = pair.say(0, Message::Welcome(hello()));
    assert_eq!(effects(&out), ["precopy"]);
    assert_eq!(pair.phase(), Phase::Copying);
    assert!(!pair.primary.may_seal());
    assert_eq!(effects(&pair.give(Event::PrecopyDone { link: LINK })), ["hold", "seal first"]);
    assert_eq!(effects(&pair.give(Event::Sealed { link: LINK, epoch: Epoch(5) })), [""; 0]);
    assert_eq!(pair.phase(), Phase::Arming);
    assert_eq!(effects(&pair.say(5, Message::Ack)), ["release 5"]);
    assert_eq!(pair.phase(), Phase::Protected);
    assert_eq!(pair.primary.acknowledged(), Some(Epoch(5)));
}

#[test]
fn before_a_checkpoint_can_be_held_the_arbiter_is_not_asked() {
    for phase in [Phase::Joining, Phase::Copying] {
        let mut pair = Pair::at(true, phase);
        assert_eq!(effects(&pair.give(lost())), ["close"], "{phase:?}");
        assert_eq!((pair.phase(), pair.primary.term()), (Phase::Alone, Term(1)));
    }
    let mut pair = Pair::at(true, Phase::Sealing);
    assert_eq!(effects(&pair.give(lost())), ["close", "alone 1"]);
}

/// P7: a machine whose standby could not continue it is not protected, and says why.
#[test]
fn what_a_standby_lacks_is_known_as_long_as_it_is_there() {
    let word = |lack, session, from| Message::Readiness { lack, session, from };
    let lacks = |lack: &str| word(Some(lack.into()), SESSION, STANDBY_SESSION);
    let said = |out: Vec<Action>| match &out[..] {
        [Action::Report(report)] => report.to_string(),
        other => panic!("{other:?}"),
    };
    let mut pair = Pair::at(true, Phase::Protected);
    assert!(said(pair.say(0, lacks("tap0: down"))).contains("not protected"));
    assert_eq!(pair.primary.lack(), Some("tap0: down"));
    assert!(pair.say(0, lacks("tap0: down")).is_empty());
    assert_eq!(pair.phase(), Phase::Protected, "the checkpoint is there all the same");
    let of_another = word(None, SESSION + 1, STANDBY_SESSION);
    assert!(pair.say(0, of_another).is_empty(), "of another session");
    let by_another = word(None, SESSION, STANDBY_SESSION + 1);
    assert!(pair.say(0, by_another).is_empty(), "of another standby");
    assert!(
        said(pair.say(0, word(None, SESSION, STANDBY_SESSION)))
            .contains("protected: the standby holds")
    );
    // Known from before the first acknowledgement on, and not beyond the session.
    let mut pair = Pair::at(true, Phase::Copying);
    assert!(pair.say(0, lacks("tap0: down")).is_empty());
    pair.give(Event::PrecopyDone { link: LINK });
    pair.give(Event::Sealed { link: LINK, epoch: Epoch(5) });
    let out = pair.say(5, Message::Ack);
    assert!(
        matches!(&out[..], [Action::Release { .. }, Action::Report(Report::Degraded { .. })]),
        "{out:?}"
    );
    pair.give(lost());
    assert_eq!(pair.primary.lack(), None);
}

#[test]
fn a_standby_that_does_not_fit_is_refused_and_one_may_refuse() {
    let mut pair = Pair::at(true, Phase::Joining);
    let mut other = hello();
    other.layout.cpus = 4;
    assert_eq!(effects(&pair.say(0, Message::Welcome(other))), ["send Refuse", "close"]);
    assert!(pair.primary.reason().unwrap().contains("cpus: primary 1, standby 4"));
    let mut pair = Pair::at(true, Phase::Joining);
    let mut stranger = hello();
    stranger.session = SESSION + 1;
    assert_eq!(effects(&pair.say(0, Message::Welcome(stranger))), ["send Refuse", "close"]);
    let mut pair = Pair::at(true, Phase::Joining);
    let reason = "the word is not there".to_string();
    assert!(pair.give(Event::Unfit { link: LinkId(9), reason: reason.clone() }).is_empty());
    let unfit = pair.give(Event::Unfit { link: LINK, reason });
    assert_eq!(effects(&unfit), ["send Refuse", "close"]);
    assert_eq!(pair.primary.reason(), Some("the word is not there"));
    let mut pair = Pair::at(true, Phase::Joining);
    let reason = "protocol: primary 1, standby 9".to_string();
    assert_eq!(effects(&pair.say(0, Message::Refuse { reason })), ["close"]);
    assert_eq!(pair.phase(), Phase::Alone);
}

/// P1: the refusal may be from an earlier session, and the standby may hold the checkpoint by now:
/// the arbiter decides.
#[test]
fn a_standby_that_refuses_its_first_checkpoint_opens_nothing() {
    for phase in [Phase::Arming, Phase::Protected] {
        let mut pair = Pair::at(true, phase);
        let out = pair.say(0, Message::Refuse { reason: "MSR 0x10".into() });
        assert_eq!(effects(&out), ["hold", "close", "ask 2"]);
        assert!(pair.primary.reason().unwrap().contains("MSR 0x10"));
    }
}

/// The driver describes its machine; the core sets the term and the protocol version.
#[test]
fn a_hello_is_of_this_protocol_and_this_term() {
    let mut pair = Pair::alone(true);
    let ours = Box::new(Hello { protocol: PROTOCOL + 1, term: Term(7), ..*hello() });
    let out = pair.give(Event::StandbyConnected { link: LINK, hello: ours });
    let [Action::Send { frame, .. }] = &out[..] else { panic!("{out:?}") };
    assert_eq!(frame.message, Message::Hello(hello()));
}

/// Before its first checkpoint a standby may be silent for longer: silence is counted again from
/// the first seal.
#[test]
fn silence_is_counted_from_the_first_seal() {
    let mut pair = Pair::at(true, Phase::Sealing);
    pair.now = 9000 * MS;
    pair.give(Event::Sealed { link: LINK, epoch: Epoch(5) });
    pair.now += 500 * MS;
    assert_eq!(effects(&pair.give(Event::Tick)), ["send Heartbeat"]);
    assert_eq!(pair.phase(), Phase::Arming);
    pair.now += 1;
    assert_eq!(effects(&pair.give(Event::Tick)), ["hold", "close", "ask 2"]);
}
