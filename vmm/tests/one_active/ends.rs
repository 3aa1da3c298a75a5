//! After an orderly end, nothing has a holder.

use std::fs;
use std::time::{Duration, Instant};

use kemari_testbed::ports::free_address;
use kemari_testbed::process::Process;
use rustix::process::Signal;

use super::Bench;
use super::micro::PATIENCE;

/// A protected pair on one arbiter: the standby and the primary.
fn protected_pair(bench: &Bench, arbiter: &str) -> (Process, Process) {
    let listen = free_address().unwrap();
    let standby = bench.side("standby", &["standby", arbiter, &format!("--listen={listen}")]);
    standby.wait_line("listening on", PATIENCE).unwrap();
    let primary = bench.run("primary", &[arbiter, &format!("--standby={listen}")]);
    bench.wait_state(&primary, "protected");
    (standby, primary)
}

/// Ends the side as an operator does, and checks that neither the disk nor the name has a holder.
#[track_caller]
fn ends_and_leaves_all_free(bench: &Bench, mut side: Process, arbiter: &str) {
    side.signal(Signal::TERM);
    let ended = side.wait_exit(PATIENCE).and_then(|ended| ended.code());
    assert_eq!(ended, Some(143), "{}", side.lines().join("\n"));
    for (name, flags) in [("plain", &[][..]), ("fresh", &[arbiter])] {
        let mut next = bench.run(name, flags);
        bench.wait_state(&next, "alone");
        next.signal(Signal::TERM);
        assert!(next.wait_exit(PATIENCE).is_some(), "{}", next.lines().join("\n"));
    }
}

/// Fails if the end releases the term that the machine had, instead of the term that it is about to
/// win.
#[test]
fn a_primary_that_ends_while_it_asks_gives_back_what_it_wins() {
    let bench = Bench::new();
    let arbiter = bench.spelled("--arbiter=", "file:", "a");
    let (mut standby, primary) = protected_pair(&bench, &arbiter);
    let records = fs::read_dir(bench.path("a")).unwrap().next().unwrap().unwrap().path();
    // A slow directory: the winner of the next term waits for two seconds.
    fs::write(records.join(format!("pace-{:020}", 1)), "1000000").unwrap();
    standby.kill();
    let won = records.join(format!("term-{:020}.json", 2));
    let deadline = Instant::now() + PATIENCE;
    while !won.exists() {
        assert!(Instant::now() < deadline, "it does not ask: {}", primary.lines().join("\n"));
        std::thread::sleep(Duration::from_millis(5));
    }
    ends_and_leaves_all_free(&bench, primary, &arbiter);
}

/// Fails if a standby that is ended during its wait as a winner does not report that it has won, or
/// does not release the term.
#[test]
fn a_standby_that_ends_as_a_winner_ends_by_the_signal() {
    let bench = Bench::new();
    let arbiter = bench.spelled("--arbiter=", "file:", "a");
    let (standby, mut primary) = protected_pair(&bench, &arbiter);
    let records = fs::read_dir(bench.path("a")).unwrap().next().unwrap().unwrap().path();
    // A slow directory: the winner of the next term waits for a second.
    fs::write(records.join(format!("pace-{:020}", 1)), "500000").unwrap();
    primary.kill();
    let won = records.join(format!("term-{:020}.json", 2));
    let deadline = Instant::now() + PATIENCE;
    while !won.exists() {
        assert!(Instant::now() < deadline, "it does not ask: {}", standby.lines().join("\n"));
        std::thread::sleep(Duration::from_millis(5));
    }
    ends_and_leaves_all_free(&bench, standby, &arbiter);
}

/// P9. Fails if an arbiter that does not answer fills the log: each request would add the same
/// line.
#[test]
fn an_arbiter_that_does_not_grant_is_logged_once_and_counted() {
    let bench = Bench::new();
    let arbiter = bench.spelled("--arbiter=", "file:", "a");
    let (standby, mut primary) = protected_pair(&bench, &arbiter);
    fs::rename(bench.path("a"), bench.path("away")).unwrap();
    primary.kill();
    // One thread writes the log, and another one answers the status.
    let first = standby.wait_line("the arbiter is unreachable", PATIENCE);
    assert!(first.is_some(), "{}", standby.lines().join("\n"));
    let unanswered = || {
        let status = bench.status("standby");
        status.map_or(0, |status| status.number("unanswered"))
    };
    let deadline = Instant::now() + PATIENCE;
    while unanswered() < 4 {
        assert!(Instant::now() < deadline, "it does not ask: {}", standby.lines().join("\n"));
        std::thread::sleep(Duration::from_millis(20));
    }
    let lines = standby.lines();
    let lines_of_it = lines.iter().filter(|line| {
        line.contains("the arbiter is unreachable") && !line.contains("could not continue")
    });
    assert_eq!(lines_of_it.count(), 1, "{}", lines.join("\n"));
}

/// Fails if the end frees only a fence record of its own term: a guest that has released nothing
/// since the takeover has not raised the record.
#[test]
fn a_machine_that_ends_soon_after_a_takeover_leaves_its_disk_free() {
    let bench = Bench::new();
    let arbiter = bench.spelled("--arbiter=", "file:", "a");
    let (standby, mut primary) = protected_pair(&bench, &arbiter);
    primary.kill();
    bench.wait_state(&standby, "alone");
    ends_and_leaves_all_free(&bench, standby, &arbiter);
}
