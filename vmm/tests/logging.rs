//! P7, P9: the log of a real process. No thread waits for the log's reader, and no guest or peer
//! can make the log grow without a bound.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod micro;

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use kemari_testbed::process::Process;
use kemari_workload::Op;
use micro::{Guest, KEMARI, PATIENCE};
use rustix::process::Signal;

/// A full pipe without a reader.
struct FullPipe {
    path: PathBuf,
    _both_ends: File,
    _dir: tempfile::TempDir,
}

impl FullPipe {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        let made = Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let mut options = OpenOptions::new();
        let mut both_ends =
            options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        loop {
            match both_ends.write(&[b'.'; 1]) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        Self { path, _both_ends: both_ends, _dir: dir }
    }

    /// The command of the binary under test, with the pipe as its standard error.
    fn kemari(&self) -> Command {
        let mut command = Command::new("sh");
        let script = format!("exec \"$@\" 2>{}", self.path.display());
        command.args(["-c", &script, "sh", KEMARI]);
        command
    }
}

#[test]
fn p7_a_full_standard_error_keeps_no_machine_from_its_end() {
    for end in [Some(Signal::TERM), None] {
        let pipe = FullPipe::new();
        let mut guest = Guest::boot_through(pipe.kemari(), "flood=sleep-types", 1, &[]);
        guest.ask(Op::Append { payload: b"served", flush: true });
        match end {
            Some(signal) => guest.process.signal(signal),
            None => guest.tell(Op::PowerOff),
        }
        let code = if end.is_some() { 143 } else { 0 };
        assert_eq!(guest.wait_exit().code(), Some(code));
    }
}

/// The primary reports the loss of its standby while it holds locks, and continues.
#[test]
fn p7_a_primary_with_a_full_standard_error_goes_on_when_its_standby_dies() {
    let pipe = FullPipe::new();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (link, arbiter) = (format!("unix:{}", path("link")), format!("file:{}", path("arbiter")));
    let control = path("control");
    let mut flags = vec!["--arbiter", &arbiter, "--control", &control];
    flags.extend(["--heartbeat-timeout", "2000"]);
    let mut guest = Guest::boot_through(pipe.kemari(), "", 1, &flags);
    guest.ask(Op::Ping);

    let mut command = Command::new(KEMARI);
    command
        .args(["standby", "--rng", "--virtio-console=none", "--serial=none"])
        .args(["--listen", &link, "--arbiter", &arbiter])
        .arg(format!("--disk=path={},serial=micro", guest.dir.path().join("disk.img").display()))
        .arg(format!("--net=stream={}", path("nobody")))
        .stdin(Stdio::null());
    let mut standby = Process::start("standby", command, Path::new(&path("log"))).unwrap();
    standby.wait_line("listening on", PATIENCE).unwrap();
    kemari_testbed::pair::status::control(
        Path::new(KEMARI),
        Path::new(&control),
        &["protect", &link],
    )
    .unwrap();
    standby.wait_line("ready: holds epoch", PATIENCE).unwrap();
    guest.ask(Op::Append { payload: b"protected", flush: true });
    standby.kill();
    guest.ask(Op::Append { payload: b"alone", flush: true });
    guest.tell(Op::PowerOff);
    assert_eq!(guest.wait_exit().code(), Some(0));
}

/// P9: a guest that causes a log line with every write causes one line a second, which counts the
/// suppressed lines.
#[test]
fn p9_a_guest_that_floods_causes_a_line_a_second() {
    const LINE: &str = "expected sleep type";
    let begun = Instant::now();
    let mut guest = Guest::boot_through(Command::new(KEMARI), "flood=sleep-types", 1, &[]);
    let count =
        |text: &str| -> Option<u64> { text.split_once("(and ")?.1.split(' ').next()?.parse().ok() };
    let lines = loop {
        guest.ask(Op::Ping);
        let lines = guest.process.lines();
        let lines: Vec<String> = lines.into_iter().filter(|line| line.contains(LINE)).collect();
        if lines.len() > 3 {
            break lines;
        }
        assert!(begun.elapsed() < PATIENCE, "{lines:?}");
    };
    let seconds = begun.elapsed().as_secs() as usize;
    assert!(lines.len() <= seconds + 2, "{} lines in {seconds} s: {:?}", lines.len(), &lines[..4]);
    let others: u64 = lines.iter().filter_map(|line| count(line)).sum();
    assert!(others > 100, "{lines:?}");
    guest.tell(Op::PowerOff);
    assert_eq!(guest.wait_exit().code(), Some(0));
}
