//! A standby with own disks (R5, R7).

use super::*;
use crate::disks::Standing;

fn pair() -> Pair {
    let standby = Standby::with_disks(StandbyOptions::default());
    let pair = Pair { standby, now: 0, digest: EpochDigest::new(STANDBY_SESSION) };
    pair.welcomes().holds()
}

fn failed() -> Event {
    Event::Disks(Standing::Failed { reason: "EIO".into() })
}

#[test]
fn r7_a_standby_whose_image_is_not_in_the_set_does_not_ask() {
    let mut syncing = pair();
    syncing.refused(Event::OperatorTakeOver);
    assert_eq!(effects(&syncing.give(lost())), ["close", "discard"]);
    assert_eq!((syncing.phase(), syncing.standby.epoch()), (Phase::Waiting, None));
    let mut covered = pair();
    covered.give(Event::Disks(Standing::Covered));
    assert_eq!(effects(&covered.give(lost())), ["close", "ask 2"]);
    // The set does not name it after all.
    let out = covered.give(Event::CannotGoOn { reason: "not in the set".into() });
    assert_eq!(effects(&out), ["discard"]);
    assert_eq!(covered.phase(), Phase::Waiting);
}

#[test]
fn r7_each_session_begins_outside_of_the_set() {
    let mut covered = pair();
    covered.give(Event::Disks(Standing::Covered));
    covered.give(lost());
    covered.give(Event::CannotGoOn { reason: "not in the set".into() });
    assert!(covered.standby.may_take_over());
    covered.digest = EpochDigest::new(STANDBY_SESSION);
    let again = covered.welcomes();
    assert!(!again.standby.may_take_over());
}

#[test]
fn r5_a_standby_whose_disk_has_failed_gives_up_and_is_not_joined_again() {
    let mut covered = pair();
    covered.give(Event::Disks(Standing::Covered));
    assert_eq!(effects(&covered.give(failed())), ["send Bye", "close", "discard"]);
    assert_eq!(covered.phase(), Phase::Waiting);
    covered.give(Event::Connected { link: LINK });
    covered.say(0, Message::Hello(hello()));
    let out = covered.give(Event::Described { ours: hello() });
    assert_eq!(effects(&out), ["send Refuse", "close"]);
    Pair::ready(true).refused(failed());
}

#[test]
fn r5_a_standby_whose_disk_fails_during_the_resync_says_so() {
    let standby = Standby::with_disks(StandbyOptions::default());
    let mut filling =
        Pair { standby, now: 0, digest: EpochDigest::new(STANDBY_SESSION) }.welcomes();
    assert_eq!(effects(&filling.give(failed())), ["send Refuse", "close", "discard"]);
    assert_eq!(filling.phase(), Phase::Waiting);
}

#[test]
fn r5_a_term_that_is_won_after_a_disk_has_failed_is_not_used() {
    // Simulation, seed 21001197.
    let mut covered = pair();
    covered.give(Event::Disks(Standing::Covered));
    assert_eq!(effects(&covered.give(lost())), ["close", "ask 2"]);
    assert_eq!(effects(&covered.give(failed())), [""; 0]);
    assert_eq!(effects(&covered.give(Event::ArbiterGranted { term: Term(2) })), ["stop"]);
    assert_eq!(covered.phase(), Phase::Stopped);
}
