//! A standby refuses at the primary's connection, not after the primary's death, what it could not
//! continue: another disk, a disk that it may not write to, a console that cannot be opened,
//! another kernel.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod micro;

use std::path::Path;
use std::process::{Command, Stdio};

use kemari_testbed::pair::status::control;
use kemari_testbed::process::{Process, in_namespaces};
use kemari_workload::Op;
use micro::{KEMARI, PATIENCE};

/// A guest that connects to a standby at `unix:DIR/link` on demand.
struct Bench {
    dir: tempfile::TempDir,
    guest: micro::Guest,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("control").display().to_string();
        let arbiter = format!("file:{}", dir.path().join("arbiter").display());
        let flags = ["--control", &socket, "--arbiter", &arbiter];
        let mut guest = micro::Guest::boot_with(1, &flags);
        guest.ask(Op::Ping);
        Self { dir, guest }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// The flags of a matching standby, except for its disk and its console.
    fn standby(&self, disk: &Path, serial: &str) -> Vec<String> {
        let disk = format!("--disk=path={},serial=micro", disk.display());
        let net = format!("--net=stream={}", self.path("nobody"));
        let (listen, arbiter) = (
            format!("--listen=unix:{}", self.path("link")),
            format!("--arbiter=file:{}", self.path("arbiter")),
        );
        ["standby", "--rng", "--virtio-console=none", &listen, &arbiter, &disk, &net, serial]
            .map(str::to_owned)
            .to_vec()
    }

    /// Protects the guest with the standby that `command` runs. The primary must report the
    /// refusal, and the guest must continue.
    #[track_caller]
    fn refused(&mut self, command: Command, expected: &[&str]) {
        self.refused_after(command, || {}, expected);
    }

    /// As [`refused`](Self::refused), with `change` called between the standby's start and the
    /// primary's connection.
    #[track_caller]
    fn refused_after(&mut self, mut command: Command, change: impl FnOnce(), expected: &[&str]) {
        command.stdin(Stdio::null());
        let standby = Process::start("standby", command, Path::new(&self.path("log"))).unwrap();
        standby.wait_line("listening on", PATIENCE).unwrap();
        change();
        let link = format!("unix:{}", self.path("link"));
        let socket = self.path("control");
        let protect = control(Path::new(KEMARI), Path::new(&socket), &["protect", &link]);
        let answer = format!("{:#}", protect.unwrap_err());
        let line = self.guest.process.wait_line("the standby refuses", PATIENCE).unwrap();
        for part in expected {
            assert!(line.contains(part), "expected `{part}` in: {line}");
            assert!(answer.contains(part), "expected `{part}` in: {answer}");
        }
        self.guest.ask(Op::Ping);
    }

    fn disk(&self) -> std::path::PathBuf {
        self.guest.dir.path().join("disk.img")
    }
}

/// A start that requires protection ends without it: at once after a refusal, otherwise after the
/// time-out.
#[test]
fn a_start_that_has_to_be_protected() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let link = format!("unix:{}", at("link"));
    let flags = ["--standby", &link, "--require-protected"];
    let mut nobody = micro::Guest::boot_with(1, &[&flags[..], &["300"]].concat());
    assert_eq!(nobody.wait_exit().code(), Some(5));
    let text = nobody.process.lines().join("\n");
    assert!(text.contains("--require-protected: expected `protected` after 300 ms"), "{text}");
    let mut command = Command::new(KEMARI);
    command.args(["standby", "--serial=none", "--listen", &link]).stdin(Stdio::null());
    let standby = Process::start("standby", command, Path::new(&at("log"))).unwrap();
    standby.wait_line("listening on", PATIENCE).unwrap();
    let mut refused = micro::Guest::boot_with(1, &[&flags[..], &["3600000"]].concat());
    assert_eq!(refused.wait_exit().code(), Some(5));
    let text = refused.process.lines().join("\n");
    for part in ["refuses", "the standby lacks it", "--disk", "--net", "--rng", "--virtio-console"]
    {
        assert!(text.contains(part), "expected `{part}` in: {text}");
    }
}

/// P3: data that the guest knows to be on disk would be missing.
#[test]
fn a_copy_of_the_disk() {
    let mut bench = Bench::new();
    let copy = bench.dir.path().join("copy.img");
    std::fs::copy(bench.disk(), &copy).unwrap();
    let mut command = Command::new(KEMARI);
    command.args(bench.standby(&copy, "--serial=none"));
    let copys = format!("no mark in {}", copy.display());
    bench.refused(command, &["disk in slot 16: primary shared, mark ", &copys, "not a copy"]);
}

/// P4, P9. Fails if a standby finds only at its first checkpoint, or at its takeover, that its
/// limit of memory is too low.
#[test]
fn a_standby_that_may_not_map_what_it_needs() {
    let mut bench = Bench::new();
    let flags = bench.standby(&bench.disk(), "--serial=none");
    let with = |kibibytes: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -d {kibibytes} && exec \"$@\""), "sh", KEMARI]);
        command.args(&flags).stdin(Stdio::null());
        command
    };
    bench.refused(with("131072"), &["RLIMIT_DATA", "2 times 64 MiB", "ulimit -d"]);

    // Following the advice must not lead to another refusal.
    let said = bench.guest.process.lines().join("\n");
    let advice = said.split_once("`ulimit -d ").unwrap().1;
    let advised = advice.split_once('`').unwrap().0;
    let standby = Process::start("standby", with(advised), Path::new(&bench.path("log"))).unwrap();
    standby.wait_line("listening on", PATIENCE).unwrap();
    let link = format!("unix:{}", bench.path("link"));
    let socket = bench.path("control");
    control(Path::new(KEMARI), Path::new(&socket), &["protect", &link]).unwrap();
    let said = standby.lines().join("\n");
    assert!(!said.contains("RLIMIT"), "{advised}: {said}");
}

/// P2, P3: after a takeover, a write that was reported complete could be lost, or a record that the
/// primary reads would never be raised.
#[test]
fn a_disk_that_is_guarded_otherwise() {
    for guard in ["cache=writeback", "fence=off"] {
        let mut bench = Bench::new();
        let mut command = Command::new(KEMARI);
        command.args(bench.standby(&bench.disk(), "--serial=none").into_iter().map(|flag| {
            if flag.starts_with("--disk=") { format!("{flag},{guard}") } else { flag }
        }));
        bench.refused(command, &[guard]);
    }
}

#[test]
fn a_console_that_cannot_be_opened() {
    let mut bench = Bench::new();
    let directory = bench.dir.path().join("logs");
    std::fs::create_dir(&directory).unwrap();
    let mut command = Command::new(KEMARI);
    let console = format!("--serial=file={}", directory.join("log").display());
    command.args(bench.standby(&bench.disk(), &console));
    bench.refused_after(command, || std::fs::remove_dir(&directory).unwrap(), &["logs/log"]);
}

#[test]
fn a_disk_that_the_standby_may_not_write() {
    let mut bench = Bench::new();
    let dir = bench.guest.dir.path().display().to_string();
    let read_only = format!("mount --bind {dir} {dir} && mount -o remount,bind,ro {dir}");
    let Some(mut command) = in_namespaces(&read_only) else { return };
    command.arg(KEMARI).args(bench.standby(&bench.disk(), "--serial=none"));
    bench.refused(command, &["disk.img", "cannot be written"]);
}

/// P7: after a takeover, the guest's next reset would boot something else.
#[test]
fn another_kernel_or_command_line_than_the_primarys() {
    let mut bench = Bench::new();
    let other = bench.dir.path().join("other");
    let kernel = std::fs::read(micro::image()).unwrap();
    std::fs::write(&other, [&kernel[..], b"another"].concat()).unwrap();
    let mut command = Command::new(KEMARI);
    command.args(bench.standby(&bench.disk(), "--serial=none")).arg("--kernel").arg(&other);
    let ours = std::fs::metadata(micro::image()).unwrap().len();
    bench.refused(
        command,
        &[
            &format!("kernel: primary {ours} bytes, sha256 "),
            &format!("standby {} bytes, sha256 ", ours + 7),
            "give the standby the same --kernel, or none",
            "cmdline: primary `virtio_mmio.device=",
            "standby ``",
        ],
    );
}

#[test]
fn a_kernel_of_the_standbys_own_that_is_not_there_is_said_at_its_start() {
    let dir = tempfile::tempdir().unwrap();
    let link = format!("unix:{}", dir.path().join("link").display());
    let command =
        ["standby", "--listen", &link, "--serial", "none", "--kernel", "/nowhere/vmlinuz"];
    let output = Command::new(KEMARI).args(command).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_ne!(output.status.code(), Some(0));
    assert!(said.contains("/nowhere/vmlinuz") && said.contains("--kernel"), "{said}");
}
