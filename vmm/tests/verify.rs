//! P8: the reaction of `--verify` to a mismatch, with real processes. The test changes the
//! standby's copy of guest memory from outside.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod micro;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kemari_testbed::process::Process;
use kemari_workload::Op;
use micro::{Guest, KEMARI, PATIENCE};

const MEMORY: u64 = 64 << 20;
/// The address of memory that the guest does not use.
const UNTOUCHED: u64 = 40 << 20;

fn status(socket: &Path) -> serde_json::Value {
    let out = Command::new(KEMARI)
        .args(["ctl", "--control", &socket.display().to_string(), "status"])
        .output()
        .unwrap();
    serde_json::from_slice(&out.stdout).unwrap_or_default()
}

#[track_caller]
fn wait_for(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Flips a byte of the guest memory in a process, in each mapping of that size: a standby has a
/// second one, in which it tries states.
fn spoil(pid: u32) {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory =
        OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem")).unwrap();
    let places = maps.lines().filter_map(|line| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        let (start, end) = (number(start)?, number(end)?);
        (end - start == MEMORY).then(|| start + UNTOUCHED)
    });
    let mut spoilt = 0;
    for place in places {
        let mut byte = [0];
        memory.read_exact_at(&mut byte, place).unwrap();
        memory.write_all_at(&[byte[0] ^ 1], place).unwrap();
        spoilt += 1;
    }
    assert!(spoilt > 0, "no mapping of the size of guest memory:\n{maps}");
}

/// The session ends at the first checkpoint that differs, the standby discards its checkpoint, and
/// both sides report it: in the status, in the log, and by their exit codes. Fails if the mismatch
/// is only logged.
#[test]
fn p8_a_standby_that_differs_is_given_up_and_both_sides_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let arbiter = format!("--arbiter=file:{}", path("arbiter"));
    let control = format!("--control={}", path("control"));
    let mut guest = Guest::boot_with(1, &["--verify", &arbiter, &control]);
    guest.ask(Op::Ping);

    let disk = guest.dir.path().join("disk.img");
    let mut command = Command::new(KEMARI);
    command
        .args(["standby", "--rng", "--serial=none", "--virtio-console=none", &arbiter])
        .arg(format!("--listen=unix:{}", path("link")))
        .arg(format!("--control={}", path("standby-control")))
        .arg(format!("--disk=path={},serial=micro", disk.display()))
        .arg(format!("--net=stream={}", path("nobody")))
        .stdin(Stdio::null());
    let mut standby = Process::start("standby", command, Path::new(&path("log"))).unwrap();
    standby.wait_line("listening on", PATIENCE).unwrap();
    let ctl = |args: &[&str]| {
        let socket = path("control");
        Command::new(KEMARI).args(["ctl", "--control", &socket]).args(args).output().unwrap()
    };
    ctl(&["protect", &format!("unix:{}", path("link"))]);
    guest.process.wait_line("protected: the standby holds", PATIENCE).unwrap();

    spoil(standby.pid());
    guest.ask(Op::Ping);
    let line = guest.process.wait_line("unprotected: ", PATIENCE).unwrap();
    assert!(line.contains("is not the same on both sides"), "{line}");
    standby.wait_line("discarded its checkpoint", PATIENCE).unwrap();
    standby.wait_line("checkpoint discarded", PATIENCE).unwrap();
    // A new session begins with a new copy of memory, so the standby is usable again.
    wait_for("the next session", || status(&dir.path().join("control"))["state"] == "protected");
    guest.ask(Op::Ping);
    for socket in ["control", "standby-control"] {
        let socket = dir.path().join(socket);
        wait_for("the count", || status(&socket)["verify"]["mismatches"] == 1);
    }
    assert!(status(&dir.path().join("control"))["verify"]["last_mismatch"].is_string());

    ctl(&["power-off"]);
    assert_eq!(guest.wait_exit().code(), Some(4), "{}", guest.process.lines().join("\n"));
    let Some(standbys) = standby.wait_exit(PATIENCE) else {
        panic!(
            "a standby ends with its primary: {}\n{}",
            standby.lines().join("\n"),
            guest.process.lines().join("\n")
        );
    };
    assert_eq!(standbys.code(), Some(4), "{}", standby.lines().join("\n"));
}
