//! A primary with own disks (R4 to R6).

use io_gate::host::{OwnPorts, new_gate_with_own_disks};

use super::*;
use crate::disks::{Event as Disks, FlushMode, Seq};
use crate::standby::TakenOver;

impl Pair {
    fn with_disks() -> Self {
        let authority = new_gate_with_own_disks(OwnPorts::none()).commit;
        let mode = FlushMode::Both;
        let (primary, actions) =
            Primary::begin_with_disks(authority, options(true), Term(1), mode, Time(0));
        assert_eq!(names(&actions), ["alone 1", "connect"]);
        Self { primary, now: 0 }
    }

    fn arming() -> Self {
        let mut pair = Self::with_disks();
        pair.give(Event::StandbyConnected { link: LINK, hello: hello() });
        pair.say(0, Message::Welcome(hello()));
        pair.give(Event::PrecopyDone { link: LINK });
        pair
    }

    /// Epoch 5 is acknowledged. Its list ends with entry 10, and its last flush is entry 8.
    fn acknowledged() -> Self {
        let mut pair = Self::arming();
        pair.seal(5, 10, 8);
        assert_eq!(names(&pair.say(5, Message::Ack)), [""; 0]);
        assert_eq!((pair.phase(), pair.primary.wants_in_set()), (Phase::Arming, None));
        pair
    }

    fn covered() -> Self {
        let mut pair = Self::acknowledged();
        assert_eq!(names(&pair.durable(9)), [""; 0]);
        assert_eq!(pair.primary.wants_in_set(), None);
        assert_eq!(names(&pair.durable(10)), [""; 0]);
        assert_eq!(pair.primary.wants_in_set(), Some(LINK));
        pair
    }

    fn in_set() -> Self {
        let mut pair = Self::covered();
        let out = pair.disks(Disks::Enlarged { link: LINK });
        assert_eq!(names(&out), ["report", "release 5"]);
        assert_eq!((pair.phase(), pair.primary.wants_in_set()), (Phase::Protected, None));
        pair
    }

    fn disks(&mut self, event: Disks) -> Vec<Action> {
        self.give(Event::Disks(event))
    }

    fn durable(&mut self, seq: u64) -> Vec<Action> {
        self.disks(Disks::StandbyDurable { link: LINK, durable: Seq(seq) })
    }

    fn seal(&mut self, epoch: u64, end: u64, flushed: u64) {
        let epoch = Epoch(epoch);
        self.disks(Disks::Listed { epoch, end: Seq(end), flushed: Seq(flushed) });
        self.give(Event::Sealed { link: LINK, epoch });
    }
}

#[test]
fn r6_a_machine_is_protected_once_the_set_names_its_standby() {
    let mut pair = Pair::in_set();
    assert_eq!(pair.primary.acknowledged(), Some(Epoch(5)));
    pair.seal(6, 11, 8);
    assert_eq!(names(&pair.say(6, Message::Ack)), ["release 6"]);
    assert_eq!(names(&pair.disks(Disks::Enlarged { link: LINK })), [""; 0]);
}

#[test]
fn r4_outputs_after_a_flush_wait_for_the_standbys_images() {
    let mut pair = Pair::in_set();
    pair.seal(6, 15, 12);
    assert_eq!(names(&pair.say(6, Message::Ack)), [""; 0]);
    let other = Disks::StandbyDurable { link: LinkId(9), durable: Seq(12) };
    assert_eq!(names(&pair.disks(other)), [""; 0]);
    assert_eq!(names(&pair.durable(11)), [""; 0]);
    assert_eq!(names(&pair.durable(12)), ["release 6"]);
}

#[test]
fn r4_a_late_report_counts_like_a_late_acknowledgement() {
    let mut pair = Pair::in_set();
    pair.now = 1000 * MS;
    // The standby lives.
    pair.primary.session.as_mut().unwrap().heard = Time(pair.now);
    pair.seal(6, 15, 12);
    pair.say(6, Message::Ack);
    let limit = options(true).ack_timeout;
    pair.now = 1000 * MS + limit.as_nanos() as u64;
    pair.now -= 1;
    pair.primary.session.as_mut().unwrap().heard = Time(pair.now);
    assert_eq!(effects(&pair.give(Event::Tick)), ["send Heartbeat"]);
    pair.now += 1;
    assert_eq!(pair.primary.next_deadline(), Some(Time(pair.now)));
    assert_eq!(effects(&pair.give(Event::Tick)), ["send Refuse", "hold", "close", "ask 2"]);
    // R4: only a term whose set excludes the standby lets the outputs go.
    assert_eq!(effects(&pair.give(Event::ArbiterGranted { term: Term(2) })), ["alone 2"]);
}

#[test]
fn r4_a_standby_whose_disk_has_failed_is_left_through_the_arbiter() {
    let mut pair = Pair::in_set();
    let failed = Disks::StandbyFailed { link: LINK, reason: "EIO".into() };
    assert_eq!(effects(&pair.disks(failed)), ["send Refuse", "hold", "close", "ask 2"]);
}

fn its_bye() -> Message {
    let (session, from) = (SESSION, STANDBY_SESSION);
    Message::Bye { reason: ByeReason::Detached, session, from, why: "".into() }
}

/// From the covering checkpoint on, the standby's image may be whole in this generation. What this
/// machine tells in the same generation would be overwritten after a start by force over there.
#[test]
fn r6_a_bye_is_no_substitute_for_a_term_once_the_standby_shares_the_generation() {
    let sealed = || {
        let mut pair = Pair::arming();
        pair.seal(5, 10, 8);
        pair
    };
    for make in [sealed, Pair::acknowledged, Pair::covered, Pair::in_set] {
        let mut pair = make();
        assert_eq!(effects(&pair.say(0, its_bye())), ["hold", "close", "ask 2"]);
    }
    let mut pair = Pair::arming();
    assert_eq!(effects(&pair.say(0, its_bye())), ["close", "alone 1"]);
}

#[test]
fn r4_after_a_takeover_outputs_wait_for_this_sides_images() {
    let authority = new_gate_with_own_disks(OwnPorts::none()).commit;
    let taken = TakenOver::new(Term(2), Epoch(5));
    let flushed = (FlushMode::Both, Seq(12));
    let (primary, actions) =
        Primary::after_takeover_with_disks(authority, options(true), taken, flushed, Time(0));
    assert_eq!(names(&actions), [""; 0]);
    let mut pair = Pair { primary, now: 0 };
    assert_eq!(pair.primary.next_deadline(), None);
    assert_eq!(names(&pair.give(Event::Tick)), [""; 0]);
    assert_eq!(names(&pair.disks(Disks::OwnDurable { durable: Seq(11) })), [""; 0]);
    assert!(pair.primary.holds_takeover());
    let out = pair.disks(Disks::OwnDurable { durable: Seq(12) });
    assert_eq!(names(&out), ["alone 2", "connect"]);
    assert_eq!(names(&pair.disks(Disks::OwnDurable { durable: Seq(13) })), [""; 0]);
}

#[test]
fn r5_a_machine_whose_own_disk_has_failed_leaves_the_guest_to_its_standby() {
    let failed = || Disks::OwnFailed { reason: "EIO".into() };
    let mut pair = Pair::in_set();
    let out = pair.disks(failed());
    assert_eq!(effects(&out), ["hold", "send Refuse", "close", "stop fenced=false"]);
    let mut pair = Pair::with_disks();
    assert_eq!(effects(&pair.disks(failed())), ["hold", "stop fenced=false"]);
    Pair::alone(true).refused(Event::Disks(failed()));
}

#[test]
fn r6_an_answer_of_the_arbiter_before_the_cover_changes_nothing() {
    let mut pair = Pair::with_disks();
    pair.give(Event::StandbyConnected { link: LINK, hello: hello() });
    pair.say(0, Message::Welcome(hello()));
    assert_eq!(names(&pair.disks(Disks::Enlarged { link: LINK })), [""; 0]);
    pair.give(Event::PrecopyDone { link: LINK });
    pair.seal(5, 10, 0);
    assert_eq!(names(&pair.say(5, Message::Ack)), [""; 0]);
    assert_eq!(pair.phase(), Phase::Arming);
}

#[test]
fn r6_news_of_the_disks_of_another_session_change_nothing() {
    let mut pair = Pair::covered();
    let (link, reason) = (LinkId(9), "EIO".into());
    assert_eq!(names(&pair.disks(Disks::Enlarged { link })), [""; 0]);
    assert_eq!(names(&pair.disks(Disks::StandbyFailed { link, reason })), [""; 0]);
    assert_eq!((pair.phase(), pair.primary.wants_in_set()), (Phase::Arming, Some(LINK)));
}

#[test]
fn r6_a_new_session_releases_nothing_before_its_own_cover() {
    let mut pair = Pair::in_set();
    pair.give(lost());
    pair.give(Event::ArbiterGranted { term: Term(2) });
    pair.give(Event::StandbyConnected { link: LINK, hello: hello() });
    pair.say(0, Message::Welcome(hello()));
    pair.give(Event::PrecopyDone { link: LINK });
    pair.seal(6, 10, 0);
    assert_eq!(names(&pair.say(6, Message::Ack)), [""; 0]);
    assert_eq!((pair.phase(), pair.primary.wants_in_set()), (Phase::Arming, None));
}

#[test]
fn r6_a_standby_that_is_let_go_does_not_come_into_the_set() {
    let mut pair = Pair::covered();
    assert_eq!(effects(&pair.give(Event::OperatorRunAlone)), ["send Bye"]);
    assert_eq!((pair.phase(), pair.primary.wants_in_set()), (Phase::Detaching, None));
    // The question was under way: its answer releases nothing.
    assert_eq!(names(&pair.disks(Disks::Enlarged { link: LINK })), [""; 0]);
    assert_eq!(effects(&pair.say(0, its_bye())), ["hold", "close", "ask 2"]);
}
