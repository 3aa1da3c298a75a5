//! The audit log of a real guest on the real `/dev/kvm`, and the report of `kemari audit` on
//! altered copies of that log.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod micro;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kemari_audit::{Entry, Event, HEADER_LEN, Log, RECORD_LEN, read};
use kemari_workload::Op;
use micro::{Guest, KEMARI};

/// Runs a guest that writes, answers and powers off; returns the path of its audit log.
fn run(dir: &Path, spec: &str) -> PathBuf {
    let base = dir.join("log");
    let mut guest = Guest::boot_with(1, &["--audit", &format!("{}{spec}", base.display())]);
    for number in 1..=50_u64 {
        let op = Op::Append { payload: &[number as u8; 600], flush: number % 10 == 0 };
        assert_eq!(guest.ask(op).applied, number);
    }
    guest.tell(Op::PowerOff);
    assert_eq!(guest.wait_exit().code(), Some(0), "{}", guest.process.lines().join("\n"));
    base
}

fn audit(arguments: &[&str], file: &Path) -> Output {
    Command::new(KEMARI).arg("audit").args(arguments).arg(file).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Writes the entries of a log after the original's header, with matching numbers and checksums.
fn write(log: &Log, original: &Path, to: &Path) {
    let mut bytes = std::fs::read(original).unwrap();
    bytes.truncate(HEADER_LEN);
    for (entry, sequence) in log.entries.iter().zip(0..) {
        bytes.extend(Entry { sequence, ..*entry }.encode());
    }
    std::fs::write(to, bytes).unwrap();
}

#[test]
fn a_guest_alone_is_on_record_and_an_altered_record_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let base = run(dir.path(), "");
    let output = audit(&["verify"], &base);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).starts_with("P1 and P2 proved: "), "{}", said(&output));
    let shown = said(&audit(&["show"], &base));
    for word in ["gate opened", "block-write of slot", "net-tx of slot", "end of the log"] {
        assert!(shown.contains(word), "no `{word}` in\n{shown}");
    }

    let original = dir.path().join("log.1.0");
    let log = read(&base).unwrap().remove(0);
    let first = |wanted: fn(&Event) -> bool| {
        log.entries.iter().position(|entry| wanted(&entry.event)).unwrap()
    };
    let altered = dir.path().join("altered");
    let verify = |log: &Log| {
        write(log, &original, &altered);
        let output = audit(&["verify"], &altered);
        (output.status.code(), said(&output))
    };

    assert_eq!(verify(&log).0, Some(0));
    let staged = first(|event| matches!(event, Event::Staged { .. }));
    let performed = first(|event| matches!(event, Event::Performing { .. }));
    let mut early = log.clone();
    let entry = early.entries.remove(performed);
    early.entries.insert(staged, entry);
    let (code, text) = verify(&early);
    assert!(code == Some(1) && text.contains("P1 BROKEN"), "{code:?}: {text}");

    let mut twice = log.clone();
    twice.entries.insert(performed, twice.entries[performed]);
    let (code, text) = verify(&twice);
    assert!(code == Some(1) && text.contains("performed twice"), "{code:?}: {text}");

    // Without a standby the gate has no reason to hold, and nothing may leave while it holds.
    let mut held = log.clone();
    let mut hold = held.entries[staged];
    hold.event = Event::Held { next: 1 };
    held.entries.insert(staged, hold);
    let (code, text) = verify(&held);
    assert!(code == Some(1) && text.contains("expected an ACK of"), "{code:?}: {text}");
}

#[test]
fn a_damaged_log_is_incomplete_and_a_torn_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let base = run(dir.path(), "");
    let file = dir.path().join("log.1.0");
    let whole = std::fs::read(&file).unwrap();

    std::fs::write(&file, &whole[..whole.len() - RECORD_LEN / 2]).unwrap();
    let output = audit(&["verify"], &base);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains("1 of them without an end record"), "{}", said(&output));

    let mut flipped = whole.clone();
    flipped[HEADER_LEN + 5 * RECORD_LEN + 17] ^= 4;
    std::fs::write(&file, &flipped).unwrap();
    let output = audit(&["verify"], &base);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(said(&output).contains("record 5: checksum"), "{}", said(&output));

    flipped[40] ^= 4;
    std::fs::write(&file, &flipped).unwrap();
    let output = audit(&["verify"], &base);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    let output = audit(&["verify"], &dir.path().join("none"));
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
}

/// Rotation of small files removes the beginning of the log; the rest is still judged.
#[test]
fn a_log_that_was_rotated_is_judged_as_far_as_it_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let base = run(dir.path(), ",size=16KiB,keep=2");
    let log = read(&base).unwrap().remove(0);
    assert!(log.is_rotated(), "{} records did not fill two files", log.entries.len());
    let output = audit(&["verify"], &base);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(said(&output).contains("rotated away"), "{}", said(&output));
    let output = audit(&["verify", "--rotated"], &base);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let once = said(&output);
    // As a shell expands `log.*`: every file by itself, and the log as a whole.
    let files = ["log.1.1", "log.1.0", "log.1.0"].map(|name| dir.path().join(name));
    let [second, first, again] = files.map(|file| file.display().to_string());
    let output = audit(&["verify", "--rotated", &second, &first, &again], &base);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(said(&output), once);
    let noted = String::from_utf8_lossy(&output.stderr);
    assert_eq!(noted.matches("counted only once").count(), 1, "{noted}");
    assert_eq!(noted.matches("named twice").count(), 3, "{noted}");
}

#[test]
fn a_log_in_no_directory_is_a_mistake_of_the_command_line() {
    let output = Command::new(KEMARI)
        .args(["run", "--serial", "none", "--audit", "/nowhere/log", "--kernel"])
        .arg(micro::image())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("--audit: cannot create /nowhere/log.1.0"), "{text}");
}
