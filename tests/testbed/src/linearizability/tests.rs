//! Tests of the judge with correct histories and with wrong ones.
#![allow(clippy::unwrap_used)]

use super::*;

/// An event of a history; tests give its time in milliseconds.
enum Event {
    Begin(u32, Action),
    End(u32, i64),
    Refused(u32),
}

use Event::{Begin, End, Refused};

/// Judges the complete history of one object with one cell.
fn judge(history: &[(u64, Event)]) -> (u64, Vec<Finding>) {
    let mut judge = Judge::new("key", 1);
    for (at, event) in history {
        let at = Duration::from_millis(*at);
        match event {
            Begin(client, action) => {
                let steps = vec![Step { cell: 0, action: *action }];
                judge.begins_at(at, 3, *client, steps, 1);
            }
            End(client, value) => judge.ends_at(at, 3, *client, Answer::Done(vec![*value])),
            Refused(client) => judge.ends_at(at, 3, *client, Answer::Refused),
        }
    }
    judge.finish();
    (judge.judged(), judge.take_findings())
}

fn is_right(history: &[(u64, Event)]) {
    let (judged, findings) = judge(history);
    let answers = history.iter().filter(|(_, event)| !matches!(event, Begin(..))).count();
    assert_eq!((judged, findings), (answers as u64, Vec::new()));
}

fn is_wrong(history: &[(u64, Event)]) -> String {
    let (_, findings) = judge(history);
    let [Finding { kind: Kind::NotLinearizable, what }] = &findings[..] else {
        panic!("expected one contradiction, found {findings:?}");
    };
    what.clone()
}

use Action::{Add, CompareAndSet, Get, Set};

#[test]
fn what_happened_one_after_the_other_is_right() {
    is_right(&[
        (1, Begin(1, Get)),
        (2, End(1, 0)),
        (3, Begin(1, Set(5))),
        (4, End(1, 5)),
        (5, Begin(2, Get)),
        (6, End(2, 5)),
        (7, Begin(2, CompareAndSet { expected: 5, value: 6 })),
        (8, End(2, 5)),
        (9, Begin(1, CompareAndSet { expected: 5, value: 7 })),
        (10, End(1, 6)),
        (11, Begin(1, Add(2))),
        (12, End(1, 8)),
    ]);
}

/// P3: an acknowledged write is missing after the takeover.
#[test]
fn a_lost_write_is_found() {
    let what = is_wrong(&[
        (1, Begin(1, Set(5))),
        (2, End(1, 5)),
        (3, Begin(1, Set(6))),
        (4, End(1, 6)),
        (5, Begin(2, Get)),
        (9, End(2, 5)),
    ]);
    assert_eq!(
        what,
        "key 3: it was [6]; expected one order of what follows, each once and between its begin and its answer, that \
         explains the answers; found none: client 2: get, 0.005000 s to 0.009000 s: answered 5"
    );
}

/// P1: a client read a value that is missing after the takeover. The write of that value was never
/// answered.
#[test]
fn a_stale_read_after_the_takeover_is_found() {
    is_wrong(&[
        (1, Begin(1, Set(5))),
        (2, Begin(2, Get)),
        (3, End(2, 5)),
        (4, Begin(3, Get)),
        (9, End(3, 0)),
    ]);
}

#[test]
fn a_doubled_increment_is_found() {
    is_right(&[(1, Begin(1, Add(1))), (2, Begin(2, Add(1))), (3, End(1, 2)), (4, End(2, 1))]);
    is_wrong(&[(1, Begin(1, Add(1))), (9, End(1, 2))]);
    is_wrong(&[(1, Begin(1, Add(1))), (2, Begin(2, Add(1))), (3, End(1, 1)), (4, End(2, 3))]);
}

/// An operation that was outstanding when its machine died may have taken effect or not, also after
/// later operations. It must not do both.
#[test]
fn what_was_never_answered_may_have_happened_or_not() {
    for seen in [0, 5] {
        is_right(&[(1, Begin(1, Set(5))), (4, Begin(2, Get)), (5, End(2, seen))]);
    }
    is_wrong(&[
        (1, Begin(1, Set(5))),
        (2, Begin(2, Get)),
        (3, End(2, 5)),
        (4, Begin(2, Get)),
        (5, End(2, 0)),
    ]);
}

#[test]
fn what_was_refused_did_not_happen() {
    is_right(&[(1, Begin(1, Set(5))), (2, Refused(1)), (3, Begin(2, Get)), (4, End(2, 0))]);
    is_wrong(&[(1, Begin(1, Set(5))), (2, Refused(1)), (3, Begin(2, Get)), (4, End(2, 5))]);
}

/// Fails if a window that ends in two possible states is continued with only one of them.
#[test]
fn two_writes_at_once_leave_either_value() {
    for seen in [5, 6] {
        is_right(&[
            (1, Begin(1, Set(5))),
            (2, Begin(2, Set(6))),
            (3, End(1, 5)),
            (4, End(2, 6)),
            (5, Begin(1, Get)),
            (6, End(1, seen)),
        ]);
    }
    is_wrong(&[
        (1, Begin(1, Set(5))),
        (2, Begin(2, Set(6))),
        (3, End(1, 5)),
        (4, End(2, 6)),
        (5, Begin(1, Get)),
        (6, End(1, 5)),
        (7, Begin(1, Get)),
        (8, End(1, 6)),
    ]);
}

/// A reader must not see one cell of a transaction without the other, nor a wrong sum.
#[test]
fn a_transaction_is_one_operation() {
    let seen = |read: [i64; 2]| {
        let mut judge = Judge::new("pair", 2);
        let step = |cell, action| Step { cell, action };
        judge.begins(0, 1, vec![step(0, Add(3)), step(1, Add(-3))]);
        judge.begins(0, 2, vec![step(0, Get), step(1, Get)]);
        judge.ends(0, 2, Answer::Done(read.to_vec()));
        judge.ends(0, 1, Answer::Done(vec![3, -3]));
        judge.take_findings().len()
    };
    assert_eq!([seen([0, 0]), seen([3, -3])], [0, 0]);
    assert_eq!([seen([3, 0]), seen([0, -3]), seen([6, -6])], [1, 1, 1]);
}

/// The search takes exponential time. A window stays small whatever clients do, and the largest
/// window is judged quickly.
#[test]
fn a_window_is_bounded() {
    let mut judge = Judge::new("key", 1);
    let mut begun = 0;
    while judge.takes(3) {
        judge.begins(3, begun, vec![Step { cell: 0, action: Set(i64::from(begun)) }]);
        begun += 1;
    }
    assert_eq!(begun, 4, "under way at once");
    for client in 0..begun {
        judge.ends(3, client, Answer::Done(vec![i64::from(client)]));
        if judge.takes(3) && client + 1 < begun {
            judge.begins(3, client, vec![Step { cell: 0, action: Set(i64::from(client)) }]);
        }
    }
    let mut more = 0;
    while judge.takes(3) {
        judge.begins(3, 100 + more, get());
        more += 1;
    }
    assert!(more <= 1, "{more} more in a window that has 7");
    judge.finish();
    assert_eq!(judge.take_findings(), []);
    assert!(judge.takes(3), "the next window has room");
}
