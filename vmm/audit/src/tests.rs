//! The recorder and its files, and how a reader treats damaged files.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use io_gate::host::{EffectId, Epoch};
use io_gate_host::{Noted, Observer, Op};

use super::files::Files;
use super::recorder::CAPACITY;
use super::*;

fn spec(dir: &Path, size: u64, keep: u32) -> AuditSpec {
    AuditSpec { base: dir.join("log"), size, keep }
}

fn header() -> Header {
    Header {
        vm: "vm".to_owned(),
        holder: "primary@here (pid 7, nonce)".to_owned(),
        boot: "boot".to_owned(),
        side: Side::Standby,
        number: 0,
        realtime: 3,
        monotonic: 4,
        before: Summary::default(),
    }
}

fn staged(sequence: u64) -> Entry {
    let (id, previous) = (sequence + 1, sequence);
    let event = Event::Staged { id, slot: 3, op: Op::NetTx, epoch: 5, previous };
    Entry { sequence, time: 1000 + sequence, event }
}

/// Writes `records` records and returns the first file.
fn written(dir: &Path, records: u64) -> PathBuf {
    let mut files = Files::create(&spec(dir, 1 << 20, 2), header()).unwrap();
    files.append(&(0..records).map(staged).collect::<Vec<_>>()).unwrap();
    dir.join("log.1.0")
}

fn read_one(dir: &Path) -> Log {
    let mut logs = read(&dir.join("log")).unwrap();
    assert_eq!(logs.len(), 1);
    logs.remove(0)
}

#[test]
fn what_is_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), 10);
    let log = read_one(dir.path());
    assert_eq!(log.header, header());
    assert_eq!(log.hole, None);
    assert_eq!(log.entries, (0..10).map(staged).collect::<Vec<_>>());
    assert!(!log.has_ended());
}

#[test]
fn every_event_is_the_same_after_a_round_trip() {
    let (id, slot, op, epoch, term, session, next) = (1, 2, Op::Power, 3, 4, 5, 6);
    let events = [
        Event::TermWon { how: Won::Begin, term, epoch, session, next },
        Event::TermWon { how: Won::TakeOver, term, epoch, session, next },
        Event::TermWon { how: Won::Alone, term, epoch, session, next },
        Event::Opened { term },
        Event::Held { next },
        Event::Joined { term, session },
        Event::Accepted { term, session },
        Event::Sealed { epoch, term, session, next },
        Event::AckReceived { epoch, term, session },
        Event::AckSent { epoch, term, session, next },
        Event::GaveUp { session },
        Event::HeardGivenUp { session },
        Event::Left { session },
        Event::Discarded { session },
        Event::Staged { id, slot, op, epoch, previous: 9 },
        Event::Adopted { id, slot, op, epoch },
        Event::Performing { id, slot, op, epoch, term, replay: false },
        Event::Performing { id, slot, op, epoch, term, replay: true },
        Event::Withheld { id },
        Event::Returned { id },
        Event::Cancelled { id },
        Event::Fenced,
        Event::Dropped { count: 8 },
        Event::Ended,
        Event::Panicked { slot, line: 70, epoch: 0, again: false },
        Event::Panicked { slot, line: 70, epoch, again: true },
    ];
    for (event, sequence) in events.into_iter().zip(0..) {
        let entry = Entry { sequence, time: 7, event };
        assert_eq!(Entry::decode(&entry.encode()), Ok(entry));
        assert!(!entry.to_string().is_empty());
    }
    for op in Op::ALL {
        let event = Event::Adopted { id, slot, op, epoch };
        let entry = Entry { sequence: 0, time: 0, event };
        assert_eq!(Entry::decode(&entry.encode()), Ok(entry));
    }
}

#[test]
fn every_flipped_bit_of_a_record_is_seen() {
    let whole = staged(4).encode();
    for bit in 0..RECORD_LEN * 8 {
        let mut bytes = whole;
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(
            matches!(Entry::decode(&bytes), Err(FormatError::Checksum { .. })),
            "bit {bit} was flipped"
        );
    }
}

#[test]
fn a_torn_tail_is_no_hole() {
    for cut in [1, RECORD_LEN - 1, RECORD_LEN, RECORD_LEN + 1] {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path(), 10);
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        let len = file.metadata().unwrap().len();
        file.set_len(len - cut as u64).unwrap();
        let log = read_one(dir.path());
        assert_eq!((log.hole, log.entries.len()), (None, 10 - cut.div_ceil(RECORD_LEN)));
    }
    // A power failure may leave zeros at the end of the file.
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), 10);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(file.metadata().unwrap().len() + 1000).unwrap();
    let log = read_one(dir.path());
    assert_eq!((log.hole, log.entries.len()), (None, 10));
}

#[test]
fn a_flipped_bit_is_a_hole_and_what_was_before_it_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), 10);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0xff], (HEADER_LEN + 6 * RECORD_LEN + 20) as u64).unwrap();
    let log = read_one(dir.path());
    assert_eq!(log.entries.len(), 6);
    let hole = log.hole.unwrap();
    assert!(hole.contains("record 6: checksum"), "{hole}");
}

#[test]
fn a_record_that_was_cut_out_is_a_hole() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), 10);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.drain(HEADER_LEN + 3 * RECORD_LEN..HEADER_LEN + 4 * RECORD_LEN);
    std::fs::write(&path, bytes).unwrap();
    let log = read_one(dir.path());
    let hole = log.hole.unwrap();
    assert!(hole.contains("expected record 3, found record 4"), "{hole}");
}

#[test]
fn rotation_keeps_the_newest_and_says_that_the_oldest_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let size = (HEADER_LEN + 5 * RECORD_LEN) as u64;
    let mut files = Files::create(&spec(dir.path(), size, 3), header()).unwrap();
    for number in 0..12 {
        files.append(&[staged(number)]).unwrap();
    }
    let log = read_one(dir.path());
    assert_eq!((log.hole, log.entries.len()), (None, 12));
    // Append more records at once than a file can hold.
    files.append(&(12..18).map(staged).collect::<Vec<_>>()).unwrap();
    let log = read_one(dir.path());
    assert_eq!(log.entries, (5..18).map(staged).collect::<Vec<_>>());
    let before = Summary { next: 5, last: 5, ..Summary::default() };
    assert_eq!((log.hole.as_ref(), log.header.before), (None, before));
    let verdict = verify(std::slice::from_ref(&log), false);
    assert!(verdict.to_string().contains("the records before 5 were rotated away"), "{verdict}");
    assert!(matches!(verify(&[log], true), Verdict::Proved(_)));
}

#[test]
fn a_former_run_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), 3);
    let mut later =
        Files::create(&spec(dir.path(), 1 << 20, 2), Header { monotonic: 5, ..header() });
    later.as_mut().unwrap().append(&(0..4).map(staged).collect::<Vec<_>>()).unwrap();
    let logs = read(&dir.path().join("log")).unwrap();
    assert_eq!(logs.iter().map(|log| log.entries.len()).collect::<Vec<_>>(), [3, 4]);
}

/// Fails if the reader counts names instead of files: the terms of a log that is named twice would
/// count as won twice.
#[test]
fn a_file_that_is_named_twice_is_read_once_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let first = written(dir.path(), 10);
    let at = |name: &str| dir.path().join(name);
    std::fs::hard_link(&first, at("hard")).unwrap();
    std::os::unix::fs::symlink(&first, at("soft")).unwrap();
    std::fs::copy(&first, at("copy")).unwrap();
    // An older copy, from a host that continued the log.
    let part = HEADER_LEN + 4 * RECORD_LEN + 9;
    std::fs::write(at("older"), &std::fs::read(&first).unwrap()[..part]).unwrap();
    let one = read_one(dir.path()).entries;
    for other in ["log", "log.1.0", "hard", "soft", "copy", "older"] {
        for names in [[at("log"), at(other)], [at(other), at("log")]] {
            let (logs, twice) = read_all(&names).unwrap();
            assert_eq!(logs.len(), 1, "{other}");
            assert_eq!(logs[0].entries, one, "{other}");
            assert_eq!(twice.len(), 1, "{other}: {twice:?}");
            assert!(twice[0].contains(&*at(other).to_string_lossy()), "{twice:?}");
        }
    }
    // A link beside the file, found under the same name.
    std::fs::hard_link(&first, at("log.2.0")).unwrap();
    let (logs, twice) = read_all(&[at("log")]).unwrap();
    assert_eq!((logs.len(), twice.len()), (1, 1), "{twice:?}");
    let mut other = std::fs::read(&first).unwrap();
    other[HEADER_LEN + 3] ^= 1;
    std::fs::write(at("other"), other).unwrap();
    let error = read_all(&[at("log"), at("other")]).unwrap_err().to_string();
    assert!(error.contains("found two that differ"), "{error}");
}

#[test]
fn what_is_no_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = read(&dir.path().join("log")).unwrap_err().to_string();
    assert!(error.contains("found none"), "{error}");
    std::fs::write(dir.path().join("log.1.0"), [7; 1000]).unwrap();
    let error = read(&dir.path().join("log")).unwrap_err().to_string();
    assert!(error.contains("KMRAUDIT"), "{error}");
}

#[test]
fn a_spec_is_read_and_others_are_refused() {
    let spec: AuditSpec = "a/b".parse().unwrap();
    assert_eq!((spec.size, spec.keep), (64 << 20, 4));
    let spec: AuditSpec = "a/b,size=1GiB,keep=9".parse().unwrap();
    assert_eq!((spec.base, spec.size, spec.keep), ("a/b".into(), 1 << 30, 9));
    for bad in ["", "a/", "a,keep=1", "a,size=1", "a,size=1KiB", "a,size=MiB", "a,b", "a,b=1"] {
        assert!(bad.parse::<AuditSpec>().is_err(), "{bad}");
    }
}

/// The recorder writes the gate's events in order, and the log ends with its last record.
#[test]
fn a_recorder_writes_what_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::start(&spec(dir.path(), 1 << 20, 2), "vm", Side::Primary).unwrap();
    let recorder = log.recorder();
    let effect = |id| Noted { id: EffectId(id), slot: 1, op: Op::BlockWrite, epoch: Epoch(2) };
    recorder.record(Event::TermWon { how: Won::Begin, term: 6, epoch: 0, session: 0, next: 1 });
    recorder.staged(&[effect(1), effect(3)]);
    // Effects 3 and 4 pass an open gate.
    recorder.staged(&[effect(3), effect(4)]);
    recorder.settle(Event::AckSent { epoch: 2, term: 6, session: 8, next: 5 });
    let settled = read_one(dir.path()).entries.len();
    assert_eq!(settled, 5, "the record of an acknowledgement is with the kernel before it leaves");
    assert!(recorder.performing(effect(1), false, None));
    recorder.fenced_off();
    assert!(!recorder.performing(effect(3), false, Some(6)));
    drop(log);
    let log = read_one(dir.path());
    assert!(log.has_ended());
    assert!(!dir.path().join("log.1.1").exists(), "it was never begun");
    let events: Vec<Event> = log.entries.iter().map(|entry| entry.event).collect();
    let (slot, op, epoch) = (1, Op::BlockWrite, 2);
    let expected = [
        Event::TermWon { how: Won::Begin, term: 6, epoch: 0, session: 0, next: 1 },
        Event::Staged { id: 1, slot, op, epoch, previous: 0 },
        Event::Staged { id: 3, slot, op, epoch, previous: 1 },
        Event::Staged { id: 4, slot, op, epoch, previous: 3 },
        Event::AckSent { epoch: 2, term: 6, session: 8, next: 5 },
        Event::Performing { id: 1, slot, op, epoch, term: 6, replay: false },
        Event::Fenced,
        Event::Ended,
    ];
    assert_eq!(events, expected);
    assert!(log.entries.is_sorted_by_key(|entry| entry.time));
}

/// More records than the buffer can hold: no thread waits, the recorder counts the dropped records,
/// and a verifier reports them.
#[test]
fn what_does_not_fit_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::start(&spec(dir.path(), 1 << 30, 2), "vm", Side::Primary).unwrap();
    let recorder = log.recorder();
    let given: u64 = 200_000;
    let effects: Vec<Noted> = (1..=given)
        .map(|id| Noted { id: EffectId(id), slot: 1, op: Op::NetTx, epoch: Epoch(2) })
        .collect();
    // `staged` holds the lock for all records: the writer cannot empty the buffer meanwhile.
    recorder.staged(&effects);
    recorder.settle(Event::Fenced);
    drop(log);
    let log = read_one(dir.path());
    let Some(Event::Dropped { count }) = log.entries.last().map(|entry| entry.event) else {
        panic!("expected a record of what was dropped, found {:?}", log.entries.last());
    };
    // The buffer may or may not have had room again for the last record.
    let told = log.entries.len() as u64 - 1 + count;
    assert!((given..=given + 1).contains(&told), "{told}");
    assert!(log.hole.as_ref().unwrap().contains(&format!("{count} records were dropped")));
    assert!(matches!(verify(&[log], true), Verdict::Incomplete { .. }));
}

/// P7: the writing thread does not exist, as if the file system hangs. A thread that acknowledges
/// waits once, for a bounded time, and touches no file; the buffer stays bounded and reports what
/// is missing.
#[test]
fn p7_nobody_waits_for_files_that_take_nothing() {
    let (recorder, done) = (Arc::new(Recorder::new(0)), std::sync::mpsc::channel());
    let (told, is_done) = done;
    let acknowledging = recorder.clone();
    let thread = std::thread::spawn(move || {
        let begun = std::time::Instant::now();
        for epoch in 0..100_000 {
            acknowledging.settle(Event::AckSent { epoch, term: 1, session: 1, next: 1 });
        }
        told.send(begun.elapsed()).unwrap();
    });
    let took = is_done.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
    thread.join().unwrap();
    assert!(took < std::time::Duration::from_secs(30), "each one waits: {took:?}");
    assert_eq!(recorder.backlog(), (CAPACITY - 1, 100_000 - (CAPACITY as u64 - 1)));

    // Once files accept records again, the log reports the missing ones, and so does a verifier.
    let dir = tempfile::tempdir().unwrap();
    let files = Files::create(&spec(dir.path(), 1 << 30, 2), header()).unwrap();
    recorder.finish(files);
    let log = read_one(dir.path());
    let dropped = |entry: &Entry| matches!(entry.event, Event::Dropped { .. });
    assert!(log.entries.iter().any(dropped) && log.hole.is_some());
    assert!(matches!(verify(&[log], true), Verdict::Incomplete { .. }));
}
