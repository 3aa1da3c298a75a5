//! Claims and fences in real directories: concurrent, slow, moved, replaced, set back, damaged.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeSet;
use std::fs;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use io_gate_host::Permission;

use super::fence::{GOOD_FOR, SETTLE};
use super::*;

fn arbiter(dir: &Path, holder: &str) -> FileArbiter {
    FileArbiter::open(dir, "vm", holder.to_owned()).unwrap()
}

fn record_of(dir: &Path, term: u64) -> std::path::PathBuf {
    dir.join("vm").join(term_name(Term(term)))
}

/// Copies a whole directory; the copy has another inode number.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    copy_into(from, to);
}

fn copy_into(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Replaces the content of a directory with that of `copy`, and keeps its inode.
fn set_back(dir: &Path, copy: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    copy_into(copy, dir);
}

/// P9: a standby that could not claim a term does not report that it is ready.
#[test]
fn p9_an_arbiter_answers_if_a_claim_could_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let a = arbiter(dir.path(), "a");
    a.begin(false).unwrap();
    a.answers().unwrap();
    let record = record_of(dir.path(), 1);
    let text = fs::read(&record).unwrap();
    for damaged in [&b""[..], b"{", &text[..text.len() / 2]] {
        fs::write(&record, damaged).unwrap();
        assert!(a.answers().is_err());
    }
    fs::write(&record, &text).unwrap();
    a.answers().unwrap();
    fs::create_dir(record_of(dir.path(), 2)).unwrap();
    assert!(a.answers().is_err());
}

/// P2: answers from before a term was won have expired when its winner may act.
#[test]
fn p2_a_winner_of_a_term_waits_for_longer_than_an_answer_is_valid() {
    let dir = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    arbiter(dir.path(), "first").begin(false).unwrap();
    assert!(begun.elapsed() >= SETTLE);
    let other = arbiter(dir.path(), "second");
    let fence = arbiter(dir.path(), "third").fence();
    assert_eq!(fence.good_for(), GOOD_FOR);
    let begun = Instant::now();
    assert_eq!(other.claim(Term(2), "test").unwrap(), Verdict::Granted);
    assert!(begun.elapsed() > fence.max_age() && fence.max_age() > Duration::ZERO);
}

#[test]
fn p2_one_of_many_claimants_wins_each_term() {
    let dir = tempfile::tempdir().unwrap();
    arbiter(dir.path(), "first").begin(false).unwrap();
    for term in 2..20 {
        let barrier = Barrier::new(4);
        let winners: usize = std::thread::scope(|scope| {
            let claims: Vec<_> = (0..4)
                .map(|i| {
                    let (barrier, dir) = (&barrier, dir.path());
                    scope.spawn(move || {
                        let arbiter = arbiter(dir, &format!("h{i}"));
                        barrier.wait();
                        arbiter.claim(Term(term), "test").unwrap() == Verdict::Granted
                    })
                })
                .collect();
            claims.into_iter().map(|claim| usize::from(claim.join().unwrap())).sum()
        });
        assert_eq!(winners, 1, "term {term}");
    }
}

#[test]
fn p2_the_fence_falls_when_a_later_term_is_won() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (arbiter(dir.path(), "a"), arbiter(dir.path(), "b"));
    assert_eq!(a.fence().ask(), Permission::Unknown, "no term is won");
    assert_eq!(a.begin(false).unwrap(), Term(1));
    assert_eq!(a.fence().ask(), Permission::Granted);
    assert_eq!(b.claim(Term(2), "suspicion").unwrap(), Verdict::Granted);
    assert_eq!(a.fence().ask(), Permission::Lost);
    assert_eq!(b.fence().ask(), Permission::Granted);
    assert!(matches!(a.claim(Term(2), "late"), Ok(Verdict::Denied(r)) if r.holder == "b"));
}

#[test]
fn effects_wait_while_the_directory_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let a = arbiter(dir.path(), "a");
    a.begin(false).unwrap();
    let (there, away) = (dir.path().join("vm"), dir.path().join("away"));
    fs::rename(&there, &away).unwrap();
    assert_eq!(a.fence().ask(), Permission::Unknown);
    assert!(a.fence().reason().contains("cannot look at"), "{}", a.fence().reason());
    // An empty directory, as left by an unmounted file system.
    fs::create_dir(&there).unwrap();
    assert_eq!(a.fence().ask(), Permission::Unknown);
    fs::remove_dir(&there).unwrap();
    fs::rename(&away, &there).unwrap();
    assert_eq!(a.fence().ask(), Permission::Granted);
}

#[test]
fn a_fresh_start_respects_the_holder_unless_it_seizes_or_the_machine_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (arbiter(dir.path(), "a"), arbiter(dir.path(), "b"));
    a.begin(false).unwrap();
    let refusal = b.begin(false).unwrap_err().to_string();
    assert!(refusal.contains("held by a") && refusal.contains("--seize"), "{refusal}");
    // The message names the record, the time of the win and its reason.
    let record = record_of(dir.path(), 1).display().to_string();
    assert!(refusal.contains(&record) && refusal.contains(" since 20"), "{refusal}");
    assert!(refusal.contains("won for: start"), "{refusal}");
    assert_eq!(b.begin(true).unwrap(), Term(2));
    b.end(Term(2)).unwrap();
    assert_eq!(a.begin(false).unwrap(), Term(3));
    assert!(b.end(Term(3)).is_err(), "whoever does not hold it does not end it");
}

#[test]
fn a_holder_that_is_no_process_of_this_host_any_more_is_said_to_be_none() {
    let dir = tempfile::tempdir().unwrap();
    // Larger than any process number.
    let dead = holder_of(999_999_999);
    arbiter(dir.path(), &dead).begin(false).unwrap();
    let refusal = arbiter(dir.path(), "b").begin(false).unwrap_err().to_string();
    assert!(refusal.contains("no such process runs on this host"), "{refusal}");
    let alive = holder_of(std::process::id());
    arbiter(dir.path(), &alive).begin(true).unwrap();
    let refusal = arbiter(dir.path(), "b").begin(false).unwrap_err().to_string();
    assert!(!refusal.contains("no such process"), "{refusal}");
}

fn holder_of(pid: u32) -> String {
    let own = kemari_support::identity::holder_name("primary");
    own.replace(&format!("(pid {},", std::process::id()), &format!("(pid {pid},"))
}

#[test]
fn p2_a_directory_that_never_heard_of_the_machine_grants_nothing() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    arbiter(here.path(), "a").begin(false).unwrap();
    let refusal = arbiter(there.path(), "b").claim(Term(2), "suspicion").unwrap_err().to_string();
    assert!(refusal.contains("same directory"), "{refusal}");
}

#[test]
fn a_machine_that_has_ended_is_not_brought_back_by_its_standby() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (arbiter(dir.path(), "a"), arbiter(dir.path(), "b"));
    let term = a.begin(false).unwrap();
    a.end(term).unwrap();
    assert!(matches!(b.claim(term.next(), "silence"), Ok(Verdict::Denied(_))));
}

#[test]
fn p2_the_fence_stays_open_for_the_winner() {
    let dir = tempfile::tempdir().unwrap();
    let a = arbiter(dir.path(), "a");
    a.begin(false).unwrap();
    let fence = a.fence();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                let answer = fence.ask();
                assert_eq!(answer, Permission::Granted, "closed while its own holder wins");
            }
        });
        for term in 2..40 {
            assert_eq!(a.claim(Term(term), "again").unwrap(), Verdict::Granted);
        }
        stop.store(true, Ordering::SeqCst);
        watcher.join().unwrap();
    });
}

/// P2: each host has its own directory, and the standby's has a term of the same number from an
/// earlier run that was killed.
#[test]
fn p2_a_standby_wins_no_term_after_one_of_a_stranger() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let primary = arbiter(ours.path(), "primary");
    primary.begin(false).unwrap();
    arbiter(theirs.path(), "earlier").begin(false).unwrap();
    let standby = arbiter(theirs.path(), "standby");
    standby.follow(Term(1), "primary");
    let refusal = standby.claim(Term(2), "silence").unwrap_err().to_string();
    assert!(
        refusal.contains("to belong to primary") && refusal.contains("held by earlier"),
        "{refusal}"
    );
    // The handshake compares the marks before this.
    let (one, other) = (primary.mark().unwrap(), standby.read_marks().unwrap());
    assert!(one.id != other.id && one.mark != other.mark, "{one}, {other}");
}

/// P9: a standby reports, before it has to claim, what would make its next claim fail.
#[test]
fn p9_a_directory_that_went_back_is_said_before_a_term_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let primary = arbiter(dir.path(), "primary");
    primary.begin(false).unwrap();
    let standby = arbiter(dir.path(), "standby");
    standby.follow(Term(1), "primary");
    standby.answers().unwrap();
    let (record, away) = (dir.path().join("vm").join(term_name(Term(1))), dir.path().join("away"));
    std::fs::rename(&record, &away).unwrap();
    let lacks = standby.answers().unwrap_err().to_string();
    assert_eq!(lacks, standby.claim(Term(2), "silence").unwrap_err().to_string());
    let other = std::fs::read_to_string(&away).unwrap().replace("primary", "stranger");
    std::fs::write(&record, other).unwrap();
    let lacks = standby.answers().unwrap_err().to_string();
    assert!(
        lacks.contains("to belong to primary") && lacks.contains("held by stranger"),
        "{lacks}"
    );
    std::fs::rename(&away, &record).unwrap();
    standby.answers().unwrap();
}

/// P2: a copy has the same identity, but lacks the mark of a session that began after the copy.
#[test]
fn p2_a_copy_of_the_directory_is_told_from_it() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let primary = arbiter(ours.path(), "primary");
    primary.begin(false).unwrap();
    primary.mark().unwrap();
    copy(&ours.path().join("vm"), &theirs.path().join("vm"));
    let (copied, same) = (arbiter(theirs.path(), "standby"), arbiter(ours.path(), "standby"));
    let view = primary.mark().unwrap();
    let found = copied.read_marks().unwrap();
    assert_eq!(view.id, found.id);
    assert_ne!(view.mark, found.mark);
    let found = same.read_marks().unwrap();
    assert_eq!((view.id, view.mark), (found.id, found.mark));
}

/// P2: a copy that is kept up to date has the mark. The primary does not see a mark written to the
/// copy, whatever the copying tool does.
#[test]
fn p2_a_copy_that_is_kept_up_is_told_by_what_the_primary_finds() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let primary = arbiter(ours.path(), "primary");
    primary.begin(false).unwrap();
    let former = arbiter(ours.path(), "standby").counter_mark().unwrap();
    let view = primary.mark().unwrap();
    copy(&ours.path().join("vm"), &theirs.path().join("vm"));
    let (copied, same) = (arbiter(theirs.path(), "standby"), arbiter(ours.path(), "standby"));
    let left = copied.counter_mark().unwrap();
    assert_eq!((&view.id, &view.mark), (&left.id, &left.mark), "by its own words it fits");
    copy_into(&ours.path().join("vm"), &theirs.path().join("vm"));
    assert_eq!(primary.read_marks().unwrap().counter_mark, former.counter_mark);
    assert_ne!(left.counter_mark, former.counter_mark);
    let left = same.counter_mark().unwrap();
    assert_eq!((&view.id, &view.mark), (&left.id, &left.mark));
    assert_eq!(primary.read_marks().unwrap().counter_mark, left.counter_mark);
}

/// P2: run, end, copy the directory, run again, restore the copy, start the other side. The arbiter
/// grants the second run's term again, and the second run finds that another process holds it.
#[test]
fn p2_a_term_that_is_given_again_is_lost_to_its_former_holder() {
    let dir = tempfile::tempdir().unwrap();
    let (terms, saved) = (dir.path().join("vm"), dir.path().join("saved"));
    let first = arbiter(dir.path(), "first");
    first.begin(false).unwrap();
    first.end(Term(1)).unwrap();
    copy(&terms, &saved);
    let second = arbiter(dir.path(), "second");
    assert_eq!(second.begin(false).unwrap(), Term(2));
    assert_eq!(second.fence().ask(), Permission::Granted);
    set_back(&terms, &saved);
    assert_eq!(second.fence().ask(), Permission::Unknown, "its term is not there");
    let refusal = second.claim(Term(3), "silence").unwrap_err().to_string();
    assert!(refusal.contains("no record of term 2"), "{refusal}");
    // No disk has a newer record, so the arbiter grants the start.
    let third = arbiter(dir.path(), "third");
    assert_eq!(third.begin(false).unwrap(), Term(2));
    assert_eq!(third.fence().ask(), Permission::Granted);
    assert_eq!(second.fence().ask(), Permission::Lost);
    assert!(second.fence().reason().contains("held by third"), "{}", second.fence().reason());
    assert!(
        matches!(second.claim(Term(3), "silence"), Ok(Verdict::Denied(r)) if r.holder == "third")
    );
}

/// P2: the record beside the disk names a holder that the arbiter does not know.
#[test]
fn p2_a_disk_that_knows_better_than_the_arbiter_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let a = arbiter(dir.path(), "a");
    let claim = |term, holder: &str, ended| DiskClaim {
        term,
        holder: holder.to_owned(),
        ended,
        text: format!("term {term} of {holder}"),
    };
    let refusal = a.begin_on(Some(&claim(4, "x", false)), false).unwrap_err().to_string();
    assert!(
        refusal.contains("term 4 of x") && refusal.contains("last record is nothing"),
        "{refusal}"
    );
    assert!(refusal.contains("--seize"), "{refusal}");
    // Terms only grow, even if only the disk records them.
    assert_eq!(a.begin_on(Some(&claim(4, "x", true)), false).unwrap(), Term(5));
    a.end(Term(5)).unwrap();
    let same = arbiter(dir.path(), "b").begin_on(Some(&claim(5, "x", false)), false);
    assert!(matches!(same, Err(ArbiterError::Behind { .. })), "same term, other holder");
    // The arbiter knows of an end that was not written beside the disk.
    let ours = claim(5, "a", false);
    assert_eq!(arbiter(dir.path(), "b").begin_on(Some(&ours), false).unwrap(), Term(6));
    assert!(matches!(a.begin_on(Some(&ours), false), Err(ArbiterError::Taken { .. })));
    assert_eq!(a.begin_on(Some(&claim(9, "x", false)), true).unwrap(), Term(10));
}

/// P2: a copy replaces the directory. A process that has the former one open does not see claims in
/// the copy.
#[test]
fn p2_a_copy_in_the_place_of_the_directory_grants_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (terms, saved, away) =
        (dir.path().join("vm"), dir.path().join("saved"), dir.path().join("away"));
    let (a, b) = (arbiter(dir.path(), "a"), arbiter(dir.path(), "b"));
    a.begin(false).unwrap();
    b.follow(Term(1), "a");
    copy(&terms, &saved);
    fs::rename(&terms, &away).unwrap();
    fs::rename(&saved, &terms).unwrap();
    assert_eq!(a.fence().ask(), Permission::Unknown);
    assert!(a.fence().reason().contains("is not the directory"), "{}", a.fence().reason());
    let refusal = b.claim(Term(2), "silence").unwrap_err().to_string();
    assert!(refusal.contains("is not the directory"), "{refusal}");
    assert!(a.claim(Term(2), "silence").is_err());
    fs::rename(&terms, &saved).unwrap();
    fs::rename(&away, &terms).unwrap();
    assert_eq!(a.fence().ask(), Permission::Granted);
    assert_eq!(b.claim(Term(2), "silence").unwrap(), Verdict::Granted);
}

/// P2: a power failure and a file system check may leave a record empty.
#[test]
fn p2_a_record_that_is_empty_grants_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (arbiter(dir.path(), "a"), arbiter(dir.path(), "b"));
    a.begin(false).unwrap();
    let written = fs::read(record_of(dir.path(), 1)).unwrap();
    fs::write(record_of(dir.path(), 1), "").unwrap();
    assert_eq!(a.fence().ask(), Permission::Unknown);
    assert!(a.fence().reason().contains("damaged"), "{}", a.fence().reason());
    assert!(b.claim(Term(2), "silence").is_err());
    assert!(a.claim(Term(2), "silence").is_err());
    assert!(b.begin(false).is_err());
    fs::write(record_of(dir.path(), 1), written).unwrap();
    assert_eq!(a.fence().ask(), Permission::Granted);
    // An empty record of the next term: another process has won that term.
    fs::write(record_of(dir.path(), 2), "").unwrap();
    assert_eq!(a.fence().ask(), Permission::Unknown);
    assert_eq!(arbiter(dir.path(), "c").begin(true).unwrap(), Term(3));
    assert_ne!(a.fence().ask(), Permission::Granted);
}

/// P2: an operator tells both sides that the other one is dead.
#[test]
fn p2_of_two_that_seize_at_once_one_wins() {
    for _ in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        arbiter(dir.path(), "dead").begin(false).unwrap();
        let barrier = Barrier::new(2);
        let sides: Vec<(FileArbiter, Result<Term, ArbiterError>)> = std::thread::scope(|scope| {
            let seizing = ["a", "b"].map(|name| {
                let (barrier, dir) = (&barrier, dir.path());
                scope.spawn(move || {
                    let arbiter = arbiter(dir, name);
                    barrier.wait();
                    let won = arbiter.begin(true);
                    (arbiter, won)
                })
            });
            seizing.into_iter().map(|side| side.join().unwrap()).collect()
        });
        let may = sides.iter().filter(|(side, _)| side.fence().ask() == Permission::Granted);
        assert_eq!(may.count(), 1, "{sides:?}");
        for (_, won) in &sides {
            if let Err(error) = won {
                let refusal = error.to_string();
                assert!(refusal.contains("another process started it"), "{refusal}");
                assert!(!refusal.contains("--seize"), "it was given: {refusal}");
            }
        }
    }
}

/// P2: a winner may die before it marks earlier terms; each earlier holder still finds out.
#[test]
fn p2_a_winner_that_dies_before_it_has_told_is_passed_over_with_all_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let (a, dead, c) =
        (arbiter(dir.path(), "a"), arbiter(dir.path(), "dead"), arbiter(dir.path(), "c"));
    a.begin(false).unwrap();
    let record = TermRecord {
        vm: "vm".to_owned(),
        term: 2,
        holder: "dead".to_owned(),
        why: String::new(),
        won_at: 0,
    };
    dead.records.create_term(&WonTerm { record, set: None }).unwrap().unwrap();
    let succeeded = |term| a.records.term_and_succeeded(Term(term)).unwrap().unwrap().1;
    assert!(!succeeded(1));
    assert_eq!(c.begin(true).unwrap(), Term(3));
    for term in [1, 2] {
        assert!(succeeded(term), "term {term}");
    }
    assert_eq!(a.fence().ask(), Permission::Lost);
}

/// P7: a backup of the directory by hard links fences no holder and hides no winner.
#[test]
fn p7_another_name_of_a_record_takes_no_right_away() {
    let dir = tempfile::tempdir().unwrap();
    let a = arbiter(dir.path(), "a");
    a.begin(false).unwrap();
    fs::hard_link(record_of(dir.path(), 1), dir.path().join("backup")).unwrap();
    assert_eq!(a.fence().ask(), Permission::Granted);
    let b = arbiter(dir.path(), "b");
    assert_eq!(b.claim(Term(2), "silence").unwrap(), Verdict::Granted);
    assert_eq!((a.fence().ask(), b.fence().ask()), (Permission::Lost, Permission::Granted));
}

fn on_disk(term: u64) -> DiskClaim {
    DiskClaim { term, holder: "gone".to_owned(), ended: false, text: String::new() }
}

/// P2: a machine begins in a term with a gap before it, because the record beside its disk is of a
/// later term than the arbiter's. Fails if only neighbouring terms are checked.
#[test]
fn p2_terms_with_a_gap_have_one_holder() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (arbiter(dir.path(), "a"), arbiter(dir.path(), "b"));
    a.begin(false).unwrap();
    assert_eq!(b.begin_on(Some(&on_disk(7)), true).unwrap(), Term(8));
    assert_eq!((a.fence().ask(), b.fence().ask()), (Permission::Lost, Permission::Granted));
    // Nor does the arbiter grant the free number to the standby.
    let standby = arbiter(dir.path(), "standby");
    standby.follow(Term(1), "a");
    match standby.claim(Term(2), "silence").unwrap() {
        Verdict::Denied(record) => assert_eq!(record.holder, "b"),
        Verdict::Granted => panic!("two machines have the right"),
    }
    assert!(!record_of(dir.path(), 2).exists(), "and it leaves no record behind");
}

/// A directory that blocks in the creation of a term's record until another machine has begun in a
/// later term.
#[derive(Debug)]
struct Overtaken {
    host: HostDirectory,
    by: FileArbiter,
    /// Whether the other machine begins after the record is created.
    after: bool,
    /// Whether the other machine has won its term.
    over: AtomicBool,
    /// Whether listing the names fails after that.
    names_fail: bool,
}

impl Overtaken {
    fn overtake(&self) {
        assert_eq!(self.by.begin_on(Some(&on_disk(7)), true).unwrap(), Term(8));
        self.over.store(true, Ordering::SeqCst);
    }
}

impl Directory for Overtaken {
    fn path(&self) -> &Path {
        self.host.path()
    }
    fn place(&self) -> io::Result<(u64, u64)> {
        self.host.place()
    }
    fn names(&self) -> io::Result<Vec<String>> {
        if self.names_fail && self.over.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.host.names()
    }
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.host.read(name)
    }
    fn create(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let stops = name == term_name(Term(2));
        if stops && !self.after {
            self.overtake();
        }
        let created = self.host.create(name, bytes);
        if stops && self.after {
            self.overtake();
        }
        created
    }
    fn append(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.host.append(name, bytes)
    }
    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.host.replace(name, bytes)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.host.remove(name)
    }
}

/// P2: two machines claim across a gap at once. A side that found no later term creates its record
/// at the same time as the other's, or after it. Fails if a process takes the record of its own
/// next term as proof that it has won.
#[test]
fn p2_of_two_that_claim_across_a_gap_at_once_one_may_perform() {
    let cases = [(false, false), (false, true), (true, false), (true, true)];
    for ((after, names_fail), holds) in cases.into_iter().flat_map(|c| [(c, false), (c, true)]) {
        let case = format!("after: {after}, names fail: {names_fail}, holds term 1: {holds}");
        let dir = tempfile::tempdir().unwrap();
        let host = HostDirectory::open(dir.path(), "vm").unwrap();
        let by = arbiter(dir.path(), "b");
        let b = by.fence();
        let over = AtomicBool::new(false);
        let claimant = on(Overtaken { host, by, after, over, names_fail }, "claimant");
        if holds {
            claimant.begin(false).unwrap();
        } else {
            arbiter(dir.path(), "a").begin(false).unwrap();
            claimant.follow(Term(1), "a");
        }
        match claimant.claim(Term(2), "silence") {
            Ok(Verdict::Denied(record)) => assert_eq!(record.holder, "b", "{case}"),
            Err(error) => assert!(names_fail, "{case}: {error}"),
            Ok(Verdict::Granted) => panic!("{case}: two machines have the right"),
        }
        assert!(record_of(dir.path(), 2).exists(), "{case}: nothing was made at once");
        let expected = if holds && !names_fail { Permission::Lost } else { Permission::Unknown };
        assert_eq!(claimant.fence().ask(), expected, "{case}");
        assert_eq!(b.ask(), Permission::Granted, "{case}");
        // The core asks again: the claim is still not granted.
        assert!(!matches!(claimant.claim(Term(2), "silence"), Ok(Verdict::Granted)), "{case}");
    }
}

/// P9. Fails if a process waits for a file that replaces a record, or reads it whole whatever its
/// size.
#[test]
fn what_is_no_record_is_neither_waited_for_nor_read_whole() {
    let dir = tempfile::tempdir().unwrap();
    let a = arbiter(dir.path(), "a");
    a.begin(false).unwrap();
    let record = record_of(dir.path(), 1);
    let kept = std::fs::read(&record).unwrap();
    let refuses = |found: &str| {
        let error = a.claim(Term(2), "silence").unwrap_err().to_string();
        assert!(error.contains("expected a regular file") && error.contains(found), "{error}");
        assert_eq!(a.fence().ask(), Permission::Unknown);
    };
    std::fs::remove_file(&record).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &record,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    refuses("a FIFO");
    std::fs::remove_file(&record).unwrap();
    std::fs::File::create(&record).unwrap().set_len(1 << 40).unwrap();
    refuses("1099511627776");
    std::fs::write(&record, kept).unwrap();
    assert_eq!(a.fence().ask(), Permission::Granted);
}

// ---- directories that behave differently from this host's ----

/// A directory with a delay in each access.
#[derive(Debug)]
struct Slow(HostDirectory, Duration);

/// A directory that behaves as the client of a network file system may: a name that was looked up
/// before its creation stays missing, because the directory's times have not changed since.
#[derive(Debug)]
struct Forgetful(HostDirectory, Mutex<BTreeSet<String>>);

macro_rules! passes_on {
    ($($call:ident($($name:ident: $kind:ty),*) -> $result:ty;)*) => {
        impl Directory for Slow {
            fn path(&self) -> &Path {
                self.0.path()
            }
            $(fn $call(&self, $($name: $kind),*) -> io::Result<$result> {
                std::thread::sleep(self.1 / 2);
                let result = self.0.$call($($name),*);
                std::thread::sleep(self.1 / 2);
                result
            })*
        }
    };
}

passes_on! {
    place() -> (u64, u64);
    names() -> Vec<String>;
    read(name: &str) -> Option<Vec<u8>>;
    create(name: &str, bytes: &[u8]) -> ();
    append(name: &str, bytes: &[u8]) -> ();
    replace(name: &str, bytes: &[u8]) -> ();
    remove(name: &str) -> ();
}

impl Directory for Forgetful {
    fn path(&self) -> &Path {
        self.0.path()
    }
    fn place(&self) -> io::Result<(u64, u64)> {
        self.0.place()
    }
    fn names(&self) -> io::Result<Vec<String>> {
        self.0.names()
    }
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let mut absent = self.1.lock().unwrap();
        if absent.contains(name) {
            return Ok(None);
        }
        let found = self.0.read(name)?;
        if found.is_none() {
            absent.insert(name.to_owned());
        }
        Ok(found)
    }
    fn create(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.1.lock().unwrap().remove(name);
        self.0.create(name, bytes)
    }
    fn append(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.0.append(name, bytes)
    }
    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.1.lock().unwrap().remove(name);
        self.0.replace(name, bytes)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }
}

fn on(directory: impl Directory + 'static, holder: &str) -> FileArbiter {
    FileArbiter::open_directory(Arc::new(directory), "vm", holder.to_owned()).unwrap()
}

/// P2: NFS with coarse timestamps: the winner's link is in the same tick as the last look.
#[test]
fn p2_a_client_that_goes_on_to_believe_that_a_name_is_absent_is_told_by_its_own_record() {
    let dir = tempfile::tempdir().unwrap();
    let open = || HostDirectory::open(dir.path(), "vm").unwrap();
    let a = on(Forgetful(open(), Mutex::default()), "a");
    a.begin(false).unwrap();
    assert_eq!(a.fence().ask(), Permission::Granted);
    assert_eq!(arbiter(dir.path(), "b").claim(Term(2), "silence").unwrap(), Verdict::Granted);
    assert!(a.records.term(Term(2)).unwrap().is_none(), "it does not see the winner's record");
    assert_eq!(a.fence().ask(), Permission::Lost);
    // A process sees its own claims and continues.
    let c = on(Forgetful(open(), Mutex::default()), "c");
    assert_eq!(c.begin(true).unwrap(), Term(3));
    assert_eq!(c.fence().ask(), Permission::Granted);
    assert_eq!(c.claim(Term(4), "again").unwrap(), Verdict::Granted);
    assert_eq!(c.fence().ask(), Permission::Granted);
}

/// P2: however slow the directory is, the former holder has acted for the last time when the winner
/// may act.
#[test]
fn p2_no_answer_is_acted_upon_when_the_winner_may() {
    for delay in [0, 1, 5, 20] {
        let delay = Duration::from_millis(delay);
        let dir = tempfile::tempdir().unwrap();
        let slow = Slow(HostDirectory::open(dir.path(), "vm").unwrap(), delay);
        // The winner's directory has no delay: only the winner's wait protects the former holder.
        let (a, b) = (on(slow, "a"), arbiter(dir.path(), "b"));
        a.begin(false).unwrap();
        let fence = a.fence();
        let (acts, may) = (AtomicBool::new(false), AtomicBool::new(false));
        let (last, won) = std::thread::scope(|scope| {
            let performing = scope.spawn(|| {
                let mut last = None;
                loop {
                    let asked = Instant::now();
                    match fence.ask() {
                        Permission::Lost => return last,
                        // Act on the oldest answer that is allowed.
                        Permission::Granted if asked.elapsed() <= fence.max_age() => {
                            may.store(acts.load(Ordering::SeqCst), Ordering::SeqCst);
                            let left = fence.max_age().saturating_sub(asked.elapsed());
                            std::thread::sleep(left * 9 / 10);
                            if asked.elapsed() <= fence.max_age() {
                                last = Some(Instant::now());
                                acts.store(true, Ordering::SeqCst);
                            }
                        }
                        _ => {}
                    }
                }
            });
            let begun = Instant::now();
            // Wait until the former holder has an answer on which it has not acted.
            while !may.load(Ordering::SeqCst) {
                assert!(
                    begun.elapsed() < Duration::from_secs(60),
                    "nothing is ever done: {delay:?}"
                );
                std::thread::yield_now();
            }
            assert_eq!(b.claim(Term(2), "silence").unwrap(), Verdict::Granted);
            let won = Instant::now();
            (performing.join().unwrap().unwrap(), won)
        });
        assert!(last < won, "{delay:?}: {:?} after the winner", last - won);
    }
}

/// P7: once no holder needs a slow pace, a takeover waits no longer than usual.
#[test]
fn a_pace_that_was_written_down_ends_with_those_who_needed_it() {
    let dir = tempfile::tempdir().unwrap();
    let open = |delay| {
        let host = HostDirectory::open(dir.path(), "vm").unwrap();
        Slow(host, Duration::from_millis(delay))
    };
    let (a, b) = (on(open(20), "a"), on(open(0), "b"));
    a.begin(false).unwrap();
    let usual = a.fence().max_age();
    let begun = Instant::now();
    while a.fence().max_age() == usual {
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", a.fence().ask());
        a.fence().ask();
    }
    let slow = a.fence().max_age();
    assert_eq!(b.records.pace(LONGEST_PACE).unwrap(), slow);
    // The holder's own next term needs the pace as well.
    assert_eq!(a.claim(Term(2), "again").unwrap(), Verdict::Granted);
    assert_eq!(b.records.pace(LONGEST_PACE).unwrap(), slow);
    let begun = Instant::now();
    assert_eq!(b.claim(Term(3), "silence").unwrap(), Verdict::Granted);
    assert!(begun.elapsed() > slow);
    assert_eq!(b.records.pace(LONGEST_PACE).unwrap(), Duration::ZERO);
}
