//! Transitions, legal and not.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::format;

use io_gate::host::new_gate;

mod disks;
mod table;

use super::*;
use crate::handshake::{BootSource, ImageId};
use crate::testing::{MS, SESSION, STANDBY_SESSION, frame, hello};
use crate::wire::{Hashes, Verified};

extern crate std;

const LINK: LinkId = LinkId(1);

struct Pair {
    primary: Primary,
    now: u64,
}

fn options(arbiter: bool) -> PrimaryOptions {
    PrimaryOptions { arbiter, max_in_flight: 2, ..PrimaryOptions::default() }
}

impl Pair {
    fn alone(arbiter: bool) -> Self {
        let (_ledger, authority) = new_gate();
        let (primary, actions) = Primary::begin(authority, options(arbiter), Term(1), Time(0));
        assert!(matches!(&actions[..], [Action::RunAlone(proof), Action::Connect]
            if proof.term() == Term(1)));
        Self { primary, now: 0 }
    }

    fn at(arbiter: bool, phase: Phase) -> Self {
        let mut pair = Self::alone(arbiter);
        let mut steps = [
            Phase::Joining,
            Phase::Copying,
            Phase::Sealing,
            Phase::Arming,
            Phase::Protected,
            Phase::Detaching,
        ]
        .into_iter();
        while pair.primary.phase() != phase {
            match steps.next().expect("a phase on the way") {
                Phase::Joining => {
                    pair.give(Event::StandbyConnected { link: LINK, hello: hello() });
                }
                Phase::Copying => {
                    pair.say(0, Message::Welcome(hello()));
                }
                Phase::Sealing => {
                    pair.give(Event::PrecopyDone { link: LINK });
                }
                Phase::Arming => {
                    pair.give(Event::Sealed { link: LINK, epoch: Epoch(5) });
                }
                Phase::Protected => {
                    pair.say(5, Message::Ack);
                }
                _ => {
                    pair.give(Event::OperatorRunAlone);
                }
            }
        }
        pair
    }

    fn doubting() -> Self {
        let mut pair = Self::at(true, Phase::Protected);
        pair.give(lost());
        pair
    }

    fn waiting() -> Self {
        let mut pair = Self::at(false, Phase::Protected);
        pair.give(lost());
        pair
    }

    fn give(&mut self, event: Event) -> Vec<Action> {
        self.primary.handle(Time(self.now), event).unwrap()
    }

    fn say(&mut self, epoch: u64, message: Message) -> Vec<Action> {
        let term = self.primary.term().0;
        self.give(Event::Frame { link: LINK, frame: frame(epoch, term, message) })
    }

    fn refused(&mut self, event: Event) -> Illegal {
        let before = self.primary.phase();
        let illegal = self.primary.handle(Time(self.now), event).unwrap_err();
        assert_eq!(self.primary.phase(), before);
        assert_eq!(illegal.state, before.name());
        illegal
    }

    fn phase(&self) -> Phase {
        self.primary.phase()
    }
}

fn lost() -> Event {
    Event::LinkLost { link: LINK, reason: "reset by peer".into() }
}

fn names(actions: &[Action]) -> Vec<String> {
    actions
        .iter()
        .map(|action| match action {
            Action::Send { frame, .. } => format!("send {}", frame.message.kind().name()),
            Action::Release { proof, .. } => format!("release {}", proof.epoch()),
            Action::RunAlone(proof) => format!("alone {}", proof.term()),
            Action::AskArbiter { term, .. } => format!("ask {term}"),
            Action::Stop { fenced, .. } => format!("stop fenced={fenced}"),
            Action::CloseLink { .. } => "close".into(),
            Action::Connect => "connect".into(),
            Action::StartPrecopy { images, .. } if images.is_empty() => "precopy".into(),
            Action::StartPrecopy { images, .. } => format!("precopy and {} images", images.len()),
            Action::SealFirst { .. } => "seal first".into(),
            Action::Hold => "hold".into(),
            Action::Report(_) => "report".into(),
        })
        .collect()
}

fn effects(actions: &[Action]) -> Vec<String> {
    names(actions).into_iter().filter(|name| name != "report").collect()
}

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
fn before_a_checkpoint_can_be_held_nobody_is_asked() {
    for phase in [Phase::Joining, Phase::Copying] {
        let mut pair = Pair::at(true, phase);
        assert_eq!(effects(&pair.give(lost())), ["close"], "{phase:?}");
        assert_eq!((pair.phase(), pair.primary.term()), (Phase::Alone, Term(1)));
    }
    let mut pair = Pair::at(true, Phase::Sealing);
    assert_eq!(effects(&pair.give(lost())), ["close", "alone 1"]);
}

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
fn p2_who_loses_the_term_stops_for_ever() {
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
fn p2_another_term_in_a_frame_breaks_the_link() {
    let mut pair = Pair::at(true, Phase::Protected);
    pair.give(Event::Sealed { link: LINK, epoch: Epoch(6) });
    let out = pair.give(Event::Frame { link: LINK, frame: frame(6, 2, Message::Ack) });
    assert_eq!(effects(&out), ["send Refuse", "hold", "close", "ask 2"]);
}

#[test]
fn p2_who_slept_takes_no_old_acknowledgement() {
    let mut pair = Pair::at(true, Phase::Protected);
    pair.give(Event::Sealed { link: LINK, epoch: Epoch(6) });
    pair.now = 501 * MS;
    assert_eq!(effects(&pair.say(6, Message::Ack)), ["hold", "close", "ask 2"]);
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
fn a_standby_is_looked_for_until_it_is_found() {
    let mut pair = Pair::alone(true);
    let mut delays = Vec::new();
    for _ in 0..6 {
        pair.give(Event::ConnectFailed { reason: "connection refused".into() });
        let next = pair.primary.next_deadline().unwrap();
        assert_eq!(effects(&pair.give(Event::Tick)), [""; 0], "not before its time");
        delays.push((next.0 - pair.now) / MS);
        pair.now = next.0;
        assert_eq!(effects(&pair.give(Event::Tick)), ["connect"]);
    }
    assert_eq!(delays, [200, 400, 800, 1600, 3200, 5000]);
    pair.give(Event::ConnectFailed { reason: "connection refused".into() });
    pair.refused(Event::ConnectFailed { reason: "again".into() });
    assert!(pair.primary.reason().is_some_and(|reason| reason.contains("connection refused")));
    assert_eq!(effects(&pair.give(Event::OperatorProtect)), ["connect"]);
    assert_eq!(pair.primary.reason(), None, "of the former address");
    pair.give(Event::StandbyConnected { link: LINK, hello: hello() });
    pair.refused(Event::StandbyConnected { link: LinkId(2), hello: hello() });
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

/// P7: a standby that hangs gives way to another one, until it may hold a checkpoint.
#[test]
fn another_standby_takes_the_place_of_one_that_is_being_joined() {
    for phase in [Phase::Joining, Phase::Copying, Phase::Sealing] {
        let mut pair = Pair::at(true, phase);
        let out = pair.give(Event::OperatorProtect);
        let mut expected = Vec::from(["send Bye", "close"]);
        if phase == Phase::Sealing {
            // The gate was held for a checkpoint that is never sent.
            expected.push("alone 1");
        }
        expected.push("connect");
        assert_eq!(effects(&out), expected, "{phase:?}");
        assert_eq!(pair.phase(), Phase::Alone);
        // Later frames of the former standby are ignored.
        let welcome = frame(0, 1, Message::Welcome(hello()));
        assert_eq!(effects(&pair.give(Event::Frame { link: LINK, frame: welcome })), [""; 0]);
        pair.refused(Event::Sealed { link: LINK, epoch: Epoch(5) });
        let link = LinkId(2);
        assert_eq!(
            effects(&pair.give(Event::StandbyConnected { link, hello: hello() })),
            ["send Hello"]
        );
    }
    // P2: from here on it may hold a checkpoint, and must be asked.
    for phase in [Phase::Arming, Phase::Protected, Phase::Detaching] {
        Pair::at(true, phase).refused(Event::OperatorProtect);
    }
    Pair::doubting().refused(Event::OperatorProtect);
    Pair::waiting().refused(Event::OperatorProtect);
}

#[test]
fn an_operator_who_changes_his_mind_gets_one_connection_at_a_time() {
    let mut pair = Pair::alone(true);
    assert!(pair.give(Event::OperatorRunAlone).is_empty());
    assert!(pair.give(Event::OperatorProtect).is_empty(), "the first attempt is under way");
    assert!(pair.give(Event::OperatorRunAlone).is_empty());
    let out = pair.give(Event::StandbyConnected { link: LINK, hello: hello() });
    assert_eq!(effects(&out), ["close"]);
    assert_eq!(pair.phase(), Phase::Alone);
    assert_eq!(effects(&pair.give(Event::OperatorProtect)), ["connect"]);
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

#[test]
fn comparisons_are_reported() {
    let mut pair = Pair::at(true, Phase::Protected);
    let hashes = Hashes { memory: 1, state: 2 };
    let verified = Verified { agree: true, primary: hashes, standby: hashes };
    let out = pair.say(5, Message::Verified(verified));
    let [Action::Report(report)] = &out[..] else { panic!("{out:?}") };
    assert!(report.to_string().starts_with("epoch 5: hashes agree: primary memory 0000"));
}

#[test]
fn answers_that_nobody_asked_for_are_illegal() {
    let mut pair = Pair::at(true, Phase::Protected);
    pair.refused(Event::ArbiterGranted { term: Term(2) });
    pair.refused(Event::ArbiterUnreachable { reason: "?".into() });
    pair.refused(Event::PrecopyDone { link: LINK });
    let mut pair = Pair::doubting();
    pair.refused(Event::ArbiterGranted { term: Term(3) });
    pair.refused(Event::ArbiterDenied { term: Term(1), holder: "b".into() });
}

fn bye(reason: ByeReason) -> Message {
    Message::Bye { reason, session: SESSION, from: STANDBY_SESSION, why: String::new() }
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

fn stalled() -> Event {
    Event::Stalled { reason: "the device thread is stuck".into() }
}

/// P7: a machine whose output cannot leave serves no client, so its standby continues. P2: it asks
/// for the right itself only after the standby has had its turn.
#[test]
fn p7_a_machine_that_is_stuck_gives_its_standby_the_guest() {
    for phase in [Phase::Arming, Phase::Protected, Phase::Detaching] {
        let mut pair = Pair::at(true, phase);
        assert_eq!(effects(&pair.give(stalled())), ["send Refuse", "hold", "close"], "{phase:?}");
        assert_eq!(pair.phase(), Phase::Doubting);
        assert_eq!(pair.primary.reason(), Some("the device thread is stuck"));
        let due = pair.primary.next_deadline().unwrap();
        assert_eq!(due, Time(0) + PrimaryOptions::default().setup_timeout);
        pair.now = due.0 - 1;
        assert_eq!(effects(&pair.give(Event::Tick)), [""; 0]);
        pair.now = due.0;
        assert_eq!(effects(&pair.give(Event::Tick)), ["ask 2"]);
        let out = pair.give(Event::ArbiterDenied { term: Term(2), holder: "standby@b".into() });
        assert_eq!(effects(&out), ["hold", "stop fenced=true"]);
    }
}

/// A stuck machine may recover before another has taken its place.
#[test]
fn a_machine_that_is_no_longer_stuck_asks_at_once() {
    let mut pair = Pair::at(true, Phase::Protected);
    pair.give(stalled());
    pair.now += MS;
    assert_eq!(effects(&pair.give(Event::Recovered)), ["ask 2"]);
    assert_eq!(effects(&pair.give(Event::ArbiterGranted { term: Term(2) })), ["alone 2"]);
    assert!(!pair.primary.is_stalled());
}

/// P7: a machine that had asked before it was stuck also leaves its standby time if it gets no
/// answer. Fails if it asks again at once, since it may win the term that the standby is about to
/// claim.
#[test]
fn p7_a_machine_that_is_stuck_and_finds_no_arbiter_leaves_its_standby_the_time() {
    let unreachable = || Event::ArbiterUnreachable { reason: "timeout".into() };
    let patience = PrimaryOptions::default().setup_timeout;
    let mut pair = Pair::doubting();
    pair.now += MS;
    pair.give(stalled());
    let turn = Time(pair.now) + patience;
    pair.now += MS;
    pair.give(unreachable());
    assert_eq!(pair.primary.next_deadline(), Some(turn));
    pair.now = turn.0;
    assert_eq!(effects(&pair.give(Event::Tick)), ["ask 2"]);

    // No longer stuck: it no longer waits.
    let mut pair = Pair::doubting();
    pair.give(stalled());
    pair.give(Event::Recovered);
    pair.give(unreachable());
    assert_eq!(pair.primary.next_deadline(), Some(Time(pair.now + 50 * MS)));
}

/// P9: no standby may hold checkpoints of a machine that it could not continue when needed.
#[test]
fn a_machine_that_is_stuck_joins_no_standby() {
    for phase in [Phase::Joining, Phase::Copying] {
        let mut pair = Pair::at(true, phase);
        assert_eq!(effects(&pair.give(stalled())), ["send Refuse", "close"], "{phase:?}");
        pair.now += 60_000 * MS;
        assert_eq!(effects(&pair.give(Event::Tick)), [""; 0], "nobody is looked for");
        pair.refused(Event::OperatorProtect);
        assert_eq!(effects(&pair.give(Event::Recovered)), ["connect"]);
    }
    // A connection that was requested before.
    let mut pair = Pair::alone(true);
    pair.give(stalled());
    let out = pair.give(Event::StandbyConnected { link: LINK, hello: hello() });
    assert_eq!(effects(&out), ["close"]);
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

/// A standby that leaves before it has sent its number for the session names none.
#[test]
fn a_standby_that_leaves_before_its_welcome_is_looked_for_again() {
    let mut pair = Pair::at(true, Phase::Joining);
    let (reason, why) = (ByeReason::Stopped, String::new());
    let out = pair.say(0, Message::Bye { reason, session: SESSION, from: 0, why });
    assert_eq!(effects(&out), ["close"]);
    assert_eq!(pair.primary.reason(), Some("the standby was stopped by its operator"));
}

/// How soon a standby is searched for after the next failure.
fn next_search(pair: &mut Pair) -> Duration {
    let now = pair.now;
    pair.give(Event::ConnectFailed { reason: "refused".into() });
    Duration::from_nanos(pair.primary.next_deadline().unwrap().0 - now)
}

/// P7, P9: failures of one standby do not delay the next.
#[test]
fn failures_are_forgotten_when_a_standby_protects_or_the_operator_wants_one() {
    let first = PrimaryOptions::default().connect_retry.first;
    let mut pair = Pair::alone(true);
    assert_eq!(next_search(&mut pair), first);
    pair.now += 200 * MS;
    pair.give(Event::Tick);
    assert_eq!(next_search(&mut pair), 2 * first);
    pair.give(Event::OperatorProtect);
    assert_eq!(next_search(&mut pair), first);

    // A standby that refuses will probably do so again; one that has protected the machine may do
    // that again.
    let mut pair = Pair::at(true, Phase::Arming);
    pair.say(0, Message::Refuse { reason: "MSR 0x10".into() });
    assert_eq!(pair.primary.refusal(), Some("MSR 0x10"));
    pair.give(Event::ArbiterGranted { term: Term(2) });
    assert_eq!(pair.primary.next_deadline(), Some(Time(5000 * MS)));
    pair.refused(Event::ArbiterGranted { term: Term(3) });
    let link = LinkId(2);
    pair.give(Event::StandbyConnected { link, hello: hello() });
    assert_eq!((pair.primary.refusal(), pair.primary.reason()), (None, None));
    let say = |pair: &mut Pair, epoch, message| {
        pair.give(Event::Frame { link, frame: frame(epoch, 2, message) })
    };
    say(&mut pair, 0, Message::Welcome(Box::new(Hello { term: Term(2), ..*hello() })));
    pair.give(Event::PrecopyDone { link });
    pair.give(Event::Sealed { link, epoch: Epoch(6) });
    say(&mut pair, 6, Message::Ack);
    pair.give(Event::LinkLost { link, reason: "reset".into() });
    pair.give(Event::ArbiterGranted { term: Term(3) });
    assert_eq!(pair.primary.next_deadline(), Some(Time(0) + first));
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

/// P8: the status says why a standby must give up its checkpoint from the moment it is asked to.
#[test]
fn p8_the_status_says_that_both_sides_differ() {
    let (primary, standby) = (Hashes { memory: 1, state: 1 }, Hashes { memory: 2, state: 1 });
    let mut pair = Pair::at(true, Phase::Protected);
    pair.say(5, Message::Verified(Verified { agree: false, primary, standby }));
    assert!(pair.primary.reason().unwrap().contains("differs from this side's"));
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
