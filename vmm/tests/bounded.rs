//! P9: the host of a guest that stages more output than can leave buffers a bounded amount. Real
//! processes on the real `/dev/kvm`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod micro;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use kemari_testbed::pair::status::control;
use kemari_testbed::process::Process;
use kemari_workload::Op;
use micro::{Guest, KEMARI, PATIENCE};
use serde_json::Value;

/// A guest with a standby; the guest writes to its serial line without a pause.
struct Pair {
    dir: tempfile::TempDir,
    guest: Guest,
    standby: Process,
}

impl Pair {
    fn start(options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let (link, socket) = (format!("unix:{}", path("link")), path("control"));
        let flags = ["--control", &socket];
        let mut guest = Guest::boot_through(Command::new(KEMARI), options, 1, &flags);
        guest.ask(Op::Ping);
        let mut command = Command::new(KEMARI);
        let disk = guest.dir.path().join("disk.img");
        command
            .args(["standby", "--rng", "--virtio-console=none", "--serial=none"])
            .args(["--listen", &link])
            .arg(format!("--disk=path={},serial=micro", disk.display()))
            .arg(format!("--net=stream={}", path("nobody")))
            .stdin(Stdio::null());
        let standby = Process::start("standby", command, Path::new(&path("log"))).unwrap();
        standby.wait_line("listening on", PATIENCE).unwrap();
        let pair = Self { dir, guest, standby };
        pair.control(&["protect", &link]);
        let ready = pair.standby.wait_line("ready: holds epoch", PATIENCE);
        assert!(
            ready.is_some(),
            "{}\n{}",
            pair.standby.lines().join("\n"),
            pair.guest.process.lines().join("\n")
        );
        pair
    }

    fn control(&self, command: &[&str]) -> Value {
        let socket: PathBuf = self.dir.path().join("control");
        control(Path::new(KEMARI), &socket, command).unwrap()
    }
}

/// The largest memory use of a process so far, in bytes.
fn most_memory(process: &Process) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// The standby is dead and no side may continue: all output is held until the operator decides.
/// Each held byte takes little more than its own size.
#[test]
fn p9_bytes_of_the_serial_line_that_are_held_are_gathered() {
    let mut pair = Pair::start("flood=serial");
    pair.standby.kill();
    let before = most_memory(&pair.guest.process);
    let status = wait_unsettled(&pair.guest.process, || pair.control(&["status"]), 40 << 10);
    assert!(status["held"].as_u64().unwrap() < 40, "{}", status["held"]);
    let grown = most_memory(&pair.guest.process).saturating_sub(before);
    assert!(grown < 4 << 20, "{} KiB", grown >> 10);

    pair.control(&["run-alone"]);
    pair.guest.ask(Op::Append { payload: b"answered", flush: true });
    pair.guest.tell(Op::PowerOff);
    assert_eq!(pair.guest.wait_exit().code(), Some(0));
}

/// The arbiter is out of reach, so released output waits for the console. When the serial line has
/// used its share, the vCPU that writes to it waits outside the guest. The vCPU can be paused
/// there, and the machine continues when the arbiter answers again.
#[test]
fn p9_a_vcpu_that_floods_waits_when_nothing_leaves() {
    const SHARE: u64 = 2 << 20;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (arbiter, socket) = (path("arbiter"), path("control"));
    let spec = format!("file:{arbiter}");
    let flags = ["--arbiter", &spec, "--control", &socket];
    let mut guest = Guest::boot_through(Command::new(KEMARI), "flood=serial", 1, &flags);
    guest.ask(Op::Ping);
    let status = || control(Path::new(KEMARI), Path::new(&socket), &["status"]).unwrap();
    let before = most_memory(&guest.process);
    std::fs::rename(&arbiter, path("away")).unwrap();
    let of = |status: &Value| status["unsettled_bytes"]["checkpoint"].as_u64().unwrap();
    let full = of(&wait_unsettled(&guest.process, status, SHARE));
    for _ in 0..20 {
        let now = of(&status());
        assert!(now < full + (64 << 10), "it goes on: {full}, then {now}");
    }
    let grown = most_memory(&guest.process).saturating_sub(before);
    assert!(grown < 48 << 20, "{} MiB", grown >> 20);

    std::fs::rename(path("away"), &arbiter).unwrap();
    guest.ask(Op::Append { payload: b"answered", flush: true });
    guest.tell(Op::PowerOff);
    assert_eq!(guest.wait_exit().code(), Some(0));
}

/// P7: a guest continues when its output reaches a file size limit, as on a full disk. Fails if
/// SIGXFSZ has its default action.
#[test]
fn a_guest_that_prints_beyond_a_limit_of_files_goes_on() {
    let mut command = Command::new("prlimit");
    command.args(["--fsize=65536", KEMARI]);
    let mut guest = Guest::boot_through(command, "flood=serial", 1, &[]);
    let said = guest.process.wait_line("output is dropped", micro::PATIENCE);
    assert!(said.is_some(), "{:?}", guest.process.lines());
    guest.ask(Op::Ping);
    guest.tell(Op::PowerOff);
    assert_eq!(guest.wait_exit().code(), Some(0));
}

/// Returns the status once this many bytes are unsettled.
fn wait_unsettled(process: &Process, status: impl Fn() -> Value, bytes: u64) -> Value {
    let begun = Instant::now();
    loop {
        let now = status();
        let unsettled = &now["unsettled_bytes"];
        if unsettled["checkpoint"].as_u64().unwrap() >= bytes {
            return now;
        }
        let said = process.lines().join("\n");
        assert!(begun.elapsed() < 2 * PATIENCE, "{unsettled} of {bytes} bytes\n{said}");
        std::thread::yield_now();
    }
}
