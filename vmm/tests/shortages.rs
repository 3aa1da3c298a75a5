//! P9: a machine with few threads or descriptors. With any limit, it either runs and releases its
//! guest's effects, or is refused with the limit's name, and its own name is free for the next
//! start.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod micro;

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kemari_testbed::process::{Process, tied_to_us};
use micro::{KEMARI, PATIENCE};
use rustix::process::{Signal, geteuid};

/// With this limit or a higher one, the machine runs.
const MOST: u32 = 120;

struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        let bench = Self(tempfile::tempdir().unwrap());
        fs::File::create(bench.path("disk.img")).unwrap().set_len(16 << 20).unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn shown(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The flags of a machine with several kinds of devices, whose serial line goes to `serial`.
    fn run(&self, kernel: &Path, serial: &str) -> Vec<String> {
        let mut words: Vec<String> =
            ["run", "--name", "vm", "--memory", "64", "--rng"].map(str::to_owned).into();
        words.extend(["--kernel".to_owned(), kernel.display().to_string()]);
        words.push(format!("--serial=file={}", self.shown(serial)));
        words.push(format!("--control={}", self.shown("control")));
        words.push(format!("--disk=path={}", self.shown("disk.img")));
        words.push(format!("--arbiter=file:{}", self.shown("arbiter")));
        words
    }

    fn start(&self, mut command: Command, words: &[String]) -> Process {
        command.args(words).stdin(Stdio::null()).stdout(Stdio::null());
        Process::start("kemari", command, &self.path("log")).unwrap()
    }
}

/// Waits until an effect of the process is seen from outside (true), or until the process has ended
/// (false).
fn runs(process: &mut Process, is_seen: impl Fn(&Process) -> bool) -> bool {
    let begun = Instant::now();
    loop {
        // Check in this order: effects from before the end are then seen.
        let has_ended = process.exited().is_some();
        if is_seen(process) {
            return true;
        }
        if has_ended {
            return false;
        }
        assert!(begun.elapsed() < PATIENCE, "it neither runs nor ends: {:?}", process.lines());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[track_caller]
fn is_refused_well(process: &mut Process, limit: u32, advice: &str) {
    let ended = process.wait_exit(PATIENCE).unwrap();
    // No line contains this text: the wait ends when all output was read.
    process.wait_line("\0", PATIENCE);
    let said = process.lines().join("\n");
    assert!(matches!(ended.code(), Some(1 | 2)), "with {limit}: {ended}: {said}");
    assert!(said.contains(advice), "with {limit}: expected `{advice}` in: {said}");
    for wrong in ["--seize", "seccomp: thread", "panicked"] {
        assert!(!said.contains(wrong), "with {limit}: expected no `{wrong}` in: {said}");
    }
}

#[track_caller]
fn ends_well(process: &mut Process) {
    process.signal(Signal::TERM);
    let ended = process.wait_exit(PATIENCE).unwrap();
    process.wait_line("\0", PATIENCE);
    let said = process.lines().join("\n");
    assert!(matches!(ended.code(), Some(0 | 143)), "{ended}: {said}");
    assert!(!said.contains("--seize"), "{said}");
}

/// P7. Fails if a machine runs without a descriptor to ask its arbiter: its guest's effects would
/// be held forever.
#[test]
fn with_few_descriptors_a_machine_is_refused_or_lets_out_what_its_guest_does() {
    let bench = Bench::new();
    let (mut limit, mut has_run, mut was_refused) = (12, 0, 0);
    while has_run < 4 {
        assert!(limit < MOST, "it does not run with {limit} descriptors");
        let mut command = tied_to_us(Path::new("sh"));
        command.args(["-c", &format!("ulimit -n {limit}; exec \"$@\""), "sh", KEMARI]);
        let serial = format!("serial-{limit}");
        let mut process = bench.start(command, &bench.run(micro::image(), &serial));
        let is_seen = |_: &Process| fs::metadata(bench.path(&serial)).is_ok_and(|it| it.len() > 0);
        if runs(&mut process, is_seen) {
            has_run += 1;
            ends_well(&mut process);
        } else if process.exited().is_some_and(|ended| ended.code() == Some(127)) {
            // The loader cannot load the program.
        } else {
            assert_eq!(has_run, 0, "it has run with less than {limit}: {:?}", process.lines());
            was_refused += 1;
            is_refused_well(&mut process, limit, "`ulimit -Hn`");
        }
        limit += 1;
    }
    assert!(was_refused > 0, "no limit was too low");
}

/// Runs `kemari` as a user with a limit of processes and threads, which does not apply to root
/// (setrlimit(2)).
struct Somebody {
    user: u32,
    kemari: PathBuf,
    kernel: PathBuf,
}

impl Somebody {
    fn new(bench: &Bench) -> Option<Self> {
        if !geteuid().is_root() {
            kemari_not_tested::not_tested("not root: nobody else's processes can be started");
            return None;
        }
        // This user has no other processes.
        let user = 100_000 + std::process::id();
        let (kemari, kernel) = (bench.path("kemari"), bench.path("kernel"));
        fs::copy(KEMARI, &kemari).unwrap();
        fs::copy(micro::image(), &kernel).unwrap();
        for place in [bench.0.path(), &bench.path("disk.img"), &kernel, &kemari] {
            chown(place, Some(user), Some(user)).unwrap();
        }
        Some(Self { user, kemari, kernel })
    }

    fn command(&self, threads: u32) -> Command {
        // Other users may not be permitted to open the host's own devices.
        let shell = "mount -t tmpfs none /dev; mknod -m 666 /dev/kvm c 10 232; mknod -m 666 /dev/null c 1 3; \
                     mknod -m 666 /dev/urandom c 1 9; exec \"$@\"";
        let mut command = tied_to_us(Path::new("unshare"));
        command.args(["--mount", "sh", "-ec", shell, "sh", "setpriv", "--clear-groups"]);
        command.args([format!("--reuid={}", self.user), format!("--regid={}", self.user)]);
        command.arg("prlimit").arg(format!("--nproc={threads}")).arg(&self.kemari);
        command
    }
}

/// P9. Fails if a start that lacks a thread is ended by its own seccomp filter, keeps its name, or
/// does not say what is missing.
#[test]
fn with_few_threads_a_machine_or_a_standby_is_refused_or_runs() {
    let bench = Bench::new();
    let Some(somebody) = Somebody::new(&bench) else { return };
    let mut was_refused = 0;
    for threads in 1.. {
        assert!(threads < MOST, "it does not run with {threads} threads");
        let serial = format!("serial-{threads}");
        let words = bench.run(&somebody.kernel, &serial);
        let mut process = bench.start(somebody.command(threads), &words);
        let is_seen = |_: &Process| fs::metadata(bench.path(&serial)).is_ok_and(|it| it.len() > 0);
        if runs(&mut process, is_seen) {
            ends_well(&mut process);
            break;
        }
        was_refused += 1;
        is_refused_well(&mut process, threads, "TasksMax=");
    }
    for threads in 1.. {
        assert!(threads < MOST, "it does not run with {threads} threads");
        let mut words: Vec<String> =
            ["standby", "--name", "vm", "--serial", "none", "--rng"].map(str::to_owned).into();
        words.push(format!("--listen=unix:{}", bench.shown("link")));
        words.push(format!("--control={}", bench.shown("control")));
        words.push(format!("--disk=path={}", bench.shown("disk.img")));
        words.push(format!("--arbiter=file:{}", bench.shown("arbiter")));
        let mut process = bench.start(somebody.command(threads), &words);
        let is_seen =
            |process: &Process| process.lines().iter().any(|line| line.contains("listening on"));
        if runs(&mut process, is_seen) {
            // The last threads of a standby start after that line.
            process.signal(Signal::TERM);
            if process.wait_exit(PATIENCE).unwrap().success() {
                break;
            }
        }
        was_refused += 1;
        is_refused_well(&mut process, threads, "TasksMax=");
    }
    assert!(was_refused > 1, "no limit was too low");
}
