//! P9: a standby that reports `ready` can take over. It checks its resources at the start, and
//! repeatedly while the guest is protected. When a resource goes away, both sides report that, and
//! neither reports `protected`.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod micro;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use kemari_testbed::pair::status::{Status, control};
use kemari_testbed::process::{Process, tied_to_us};
use micro::{KEMARI, PATIENCE};
use rustix::process::{Resource, Rlimit, Signal};
use serde_json::Value;

/// Moves this thread, and all processes that it starts, to a new network namespace.
fn own_network() -> bool {
    // SAFETY: a system call that changes the network namespace of this thread only.
    let permitted = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
    if !permitted {
        kemari_not_tested::not_tested("this machine permits no network namespace");
    }
    permitted
}

#[track_caller]
fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(done.success(), "ip {arguments}");
}

/// Creates a tap for each side; the standby's tap has an address for routing.
fn taps_with_a_route() {
    for tap in ["tapa", "tapb"] {
        ip(&format!("tuntap add {tap} mode tap"));
        ip(&format!("link set {tap} up"));
    }
    ip("addr add 10.77.0.1/24 dev tapb");
}

struct Bench {
    dir: tempfile::TempDir,
    /// The flags of the guest's devices; `{side}` stands for each side's own resource.
    devices: Vec<&'static str>,
}

impl Bench {
    fn new(devices: &[&'static str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("disk.img"), vec![0; 1 << 20]).unwrap();
        Self { dir, devices: devices.to_vec() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn show(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn flags(&self, side: &str) -> Vec<String> {
        let filled = |device: &&str| {
            device.replace("{side}", side).replace("{dir}", &self.dir.path().display().to_string())
        };
        let mut flags: Vec<String> = self.devices.iter().map(filled).collect();
        flags.push(format!("--control={}", self.show(side)));
        flags.push(format!("--arbiter=file:{}", self.show("arbiter")));
        flags.push("--serial=none".into());
        flags
    }

    fn primary(&self) -> Process {
        let mut command = tied_to_us(Path::new(KEMARI));
        command.args(["run", "--memory", "64", "--kernel"]).arg(micro::image());
        command.args(self.flags("a")).stdin(Stdio::null());
        let primary = Process::start("a", command, &self.path("a.log")).unwrap();
        self.wait("a", |status| status["state"] == "alone");
        primary
    }

    fn standby(&self, command: Command) -> Process {
        let standby = Process::start("b", self.as_standby(command), &self.path("b.log")).unwrap();
        standby.wait_line("listening on", PATIENCE).unwrap();
        standby
    }

    fn as_standby(&self, mut command: Command) -> Command {
        command.args(["standby", &format!("--listen=unix:{}", self.show("link"))]);
        command.args(self.flags("b")).stdin(Stdio::null());
        command
    }

    fn protect(&self) -> Result<Value, String> {
        let link = format!("unix:{}", self.show("link"));
        control(Path::new(KEMARI), &self.path("a"), &["protect", &link])
            .map_err(|error| format!("{error:#}"))
    }

    fn status(&self, side: &str) -> Option<Value> {
        Status::ask(Path::new(KEMARI), &self.path(side)).ok().map(|status| status.json().clone())
    }

    #[track_caller]
    fn wait(&self, side: &str, until: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.status(side);
            if let Some(status) = found.as_ref().filter(|status| until(status)) {
                return status.clone();
            }
            assert!(Instant::now() < deadline, "{side}: {found:?}");
            std::thread::yield_now();
        }
    }

    /// Number of terms that were won.
    fn terms(&self) -> usize {
        let mut machines = std::fs::read_dir(self.path("arbiter")).unwrap();
        let dir = std::fs::read_dir(machines.next().unwrap().unwrap().path()).unwrap();
        let names = dir.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("term-")).count()
    }

    /// Waits until both sides report that the guest is not protected, and why.
    #[track_caller]
    fn degraded(&self, reason: &str) {
        for side in ["a", "b"] {
            self.wait(side, |status| {
                let why = status["reason"].as_str().unwrap_or_default();
                status["state"] == "degraded" && why.contains(reason)
            });
        }
    }

    #[track_caller]
    fn protected(&self) {
        self.wait("a", |status| status["state"] == "protected" && status["reason"].is_null());
        self.wait("b", |status| status["state"] == "ready");
    }
}

fn kemari() -> Command {
    tied_to_us(Path::new(KEMARI))
}

#[track_caller]
fn refused(output: &Output, parts: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for part in parts {
        assert!(said.contains(part), "expected `{part}` in: {said}");
    }
}

/// The kernel would create a tap for a mistyped name, connected to nothing.
#[test]
fn an_interface_that_is_not_there_is_a_mistake_on_either_side() {
    if !own_network() {
        return;
    }
    ip("tuntap add tun0 mode tun");
    ip("tuntap add many0 mode tap multi_queue");
    let kernel = micro::image().to_str().unwrap();
    let listen = format!("--listen=unix:{}", tempfile::tempdir().unwrap().path().display());
    for command in [&["run", "--kernel", kernel][..], &["standby", &listen]] {
        let with = |net: &str| {
            Command::new(KEMARI)
                .args(command)
                .args(["--serial=none", "--net", net])
                .stdin(Stdio::null())
                .output()
                .unwrap()
        };
        let parts = ["tap=tpa0", "no such interface", "ip tuntap add tpa0 mode tap", "create=on"];
        refused(&with("tap=tpa0"), &parts);
        refused(&with("tap=lo"), &["tap=lo", "expected a tap, found"]);
        refused(&with("tap=tun0"), &["tap=tun0", "expected a tap, found tun"]);
        refused(&with("tap=many0"), &["tap=many0", "expected a tap, found a tap with multi_queue"]);
        refused(&with("stream=/nowhere,create=on"), &["create=on is for tap=IFNAME"]);
    }
    let made = Command::new("ip").args(["link", "show", "tpa0"]).output().unwrap();
    assert!(!made.status.success(), "nobody has made it");

    // With `create=on`, the tap is created.
    let bench = Bench::new(&["--net=tap=made{side},create=on"]);
    let _primary = bench.primary();
    ip("link show madea");
}

#[test]
fn a_tap_that_goes_away_is_said_on_both_sides() {
    if !own_network() {
        return;
    }
    ip("link add br0 up type bridge");
    for tap in ["tapa", "tapb"] {
        ip(&format!("tuntap add {tap} mode tap"));
        ip(&format!("link set {tap} master br0"));
    }
    ip("link set tapa up");
    let bench = Bench::new(&["--net=tap=tap{side}"]);
    let _primary = bench.primary();
    // The tap is down at the start: the standby knows that before a primary connects, and reports
    // it to the primary.
    let standby = bench.standby(kemari());
    let refusal = bench.protect().unwrap_err();
    assert!(refusal.contains("tapb") && refusal.contains("down"), "{refusal}");
    let waiting = bench.wait("b", |status| status["state"] == "waiting");
    assert!(waiting["reason"].as_str().unwrap().contains("ip link set tapb up"), "{waiting}");

    ip("link set tapb up");
    standby.wait_line("nothing is missing any more", PATIENCE).unwrap();
    // After a takeover, packets of the guest's peers would be dropped here.
    ip("link set tapb mtu 1400");
    let refusal = bench.protect().unwrap_err();
    let parts = ["MTU of network 1", "primary has 1500", "standby has 1400"];
    assert!(parts.iter().all(|part| refusal.contains(part)), "{refusal}");
    // A larger MTU drops nothing.
    ip("link set tapb mtu 9000");
    assert_eq!(bench.protect().unwrap()["state"], "protected");
    bench.protected();
    ip("link set tapb down");
    bench.degraded("tap=tapb: the interface is down");
    ip("link set tapb up");
    bench.protected();
    ip("link set br0 down");
    bench.degraded("tap=tapb: its bridge is down");
    ip("link set br0 up");
    bench.protected();
    ip("link set tapb nomaster");
    bench.degraded("tap=tapb: the interface is not connected");
    // An address for routing is enough.
    ip("addr add 10.77.0.1/24 dev tapb");
    bench.protected();
    ip("link del tapb");
    bench.degraded("tap=tapb: no such interface");
}

/// P7, P9: a standby whose disk is missing does not take the term from its primary, reports that,
/// and takes over when the disk is back.
#[test]
fn a_disk_that_goes_away_holds_a_takeover_back() {
    let bench = Bench::new(&["--disk=path={dir}/{side}.img"]);
    for side in ["a", "b"] {
        std::os::unix::fs::symlink(bench.path("disk.img"), bench.path(&format!("{side}.img")))
            .unwrap();
    }
    let mut primary = bench.primary();
    let _standby = bench.standby(kemari());
    bench.protect().unwrap();
    bench.protected();
    // The standby's path to the disk, not the primary's.
    let (link, away) = (bench.path("b.img"), bench.path("away"));
    std::fs::rename(&link, &away).unwrap();
    bench.degraded("b.img: it cannot be opened");
    std::fs::copy(bench.path("disk.img"), &link).unwrap();
    bench.degraded("another file has replaced it");
    std::fs::remove_file(&link).unwrap();

    primary.kill().unwrap();
    let held = bench.wait("b", |status| status["state"] == "doubting");
    let why = held["reason"].as_str().unwrap();
    assert!(why.contains("will not take over") && why.contains("b.img"), "{why}");
    std::fs::rename(&away, &link).unwrap();
    bench.wait("b", |status| status["role"] == "primary" && status["state"] == "alone");
}

/// P7, P9. The guest cannot continue yet: no term is claimed, and a signal ends this side in an
/// orderly way. Fails if the signal is lost during the wait.
#[test]
fn a_side_that_cannot_go_on_yet_ends_in_good_order() {
    for end in ["TERM", "power-off"] {
        let bench = Bench::new(&["--net=dgram={dir}/{side}.net:{dir}/peer"]);
        let mut primary = bench.primary();
        let mut standby = bench.standby(kemari());
        bench.protect().unwrap();
        bench.protected();
        // Another process has taken the name of the standby's network socket.
        let _taken = std::os::unix::net::UnixDatagram::bind(bench.path("b.net")).unwrap();
        primary.kill().unwrap();
        bench.wait("b", |status| {
            let why = status["reason"].as_str().unwrap_or_default();
            status["state"] == "doubting"
                && why.contains("will not take over")
                && why.contains("b.net")
        });
        match end {
            "TERM" => standby.signal(Signal::TERM),
            command => {
                let answer = control(Path::new(KEMARI), &bench.path("b"), &[command]).unwrap();
                assert_eq!(answer["done"], true, "{answer}");
            }
        }
        assert_eq!(standby.wait_exit(PATIENCE).unwrap().code(), Some(0));
        assert_eq!(bench.terms(), 1);
        // No request was sent to the arbiter, so the end waits for none.
        let said = standby.lines().join("\n");
        assert!(!said.contains("the arbiter has not answered"), "{said}");
    }
}

/// P9: a takeover would stop before it wins its term. Fails if the name of a datagram socket is
/// checked only when it is used.
#[test]
fn a_datagram_name_that_another_process_has_is_reported() {
    let bench = Bench::new(&["--net=dgram={dir}/{side}.net:{dir}/peer"]);
    let _primary = bench.primary();
    let _standby = bench.standby(kemari());
    bench.protect().unwrap();
    bench.protected();
    let name = bench.path("b.net");
    std::fs::write(&name, "a file").unwrap();
    bench.degraded("net dgram=");
    std::fs::remove_file(&name).unwrap();
    bench.protected();
    let other = std::os::unix::net::UnixDatagram::bind(&name).unwrap();
    bench.degraded("net dgram=");
    drop(other);
    bench.protected();
}

/// Fails if only `--disk` and `--net` are checked.
#[test]
fn what_is_behind_a_device_by_name_is_looked_at_too() {
    if !own_network() {
        return;
    }
    ip("link add br0 up type bridge");
    for tap in ["tapa", "tapb"] {
        ip(&format!("tuntap add {tap} mode tap"));
        ip(&format!("link set {tap} master br0"));
        ip(&format!("link set {tap} up"));
    }
    let bench = Bench::new(&[
        "--device=beeper,disk=path={dir}/{side}.img",
        "--device=beeper,tap=tap{side}",
    ]);
    for side in ["a", "b"] {
        std::os::unix::fs::symlink(bench.path("disk.img"), bench.path(&format!("{side}.img")))
            .unwrap();
    }
    let _primary = bench.primary();
    let _standby = bench.standby(kemari());
    bench.protect().unwrap();
    bench.protected();
    ip("link set tapb down");
    bench.degraded("tap=tapb: the interface is down");
    ip("link set tapb up");
    bench.protected();
    let (link, away) = (bench.path("b.img"), bench.path("away"));
    std::fs::rename(&link, &away).unwrap();
    bench.degraded("b.img: it cannot be opened");
    std::fs::rename(&away, &link).unwrap();
    bench.protected();
}

/// P9: the check happens before a guest is protected. Fails if only the networks of `--net` are
/// opened then.
#[test]
fn p9_a_tap_of_a_named_device_that_cannot_be_opened_is_said_when_a_session_begins() {
    if !own_network() {
        return;
    }
    taps_with_a_route();
    let bench = Bench::new(&["--device=beeper,tap=tap{side}"]);
    let _primary = bench.primary();
    let _standby = bench.standby(kemari());
    let mut command = kemari();
    command.args(["run", "--serial=none", "--net=tap=tapb", "--kernel"]).arg(micro::image());
    command.arg(format!("--control={}", bench.show("c"))).stdin(Stdio::null());
    let mut other = Process::start("c", command, &bench.path("c.log")).unwrap();
    bench.wait("c", |status| status["state"] == "alone");
    let refusal = bench.protect().unwrap_err();
    assert!(refusal.contains("tapb"), "{refusal}");
    other.kill().unwrap();
    assert_eq!(bench.protect().unwrap()["state"], "protected");
    bench.protected();
}

/// Fails if a standby keeps the disk locks of a machine that it has refused.
#[test]
fn a_primary_that_was_refused_starts_again_corrected() {
    let bench = Bench::new(&["--disk=path={dir}/disk.img"]);
    let mut primary = bench.primary();
    let mut other = bench.as_standby(kemari());
    other.arg("--rng");
    let standby = Process::start("b", other, &bench.path("b.log")).unwrap();
    standby.wait_line("listening on", PATIENCE).unwrap();
    let refusal = bench.protect().unwrap_err();
    assert!(refusal.contains("refuses") && refusal.contains("--rng"), "{refusal}");
    bench.wait("b", |status| status["state"] == "waiting");
    primary.signal(Signal::TERM);
    primary.wait_exit(PATIENCE).unwrap();
    let mut command = tied_to_us(Path::new(KEMARI));
    command.args(["run", "--memory", "64", "--rng", "--kernel"]).arg(micro::image());
    command.args(bench.flags("a")).stdin(Stdio::null());
    let _primary = Process::start("a", command, &bench.path("a2.log")).unwrap();
    bench.wait("a", |status| status["state"] == "alone");
    assert_eq!(bench.protect().unwrap()["state"], "protected");
}

/// P2: records for a standby are written when a standby is connected. Fails if the fence record is
/// written again at each attempt to connect, while there is no standby.
#[test]
fn p2_the_records_of_the_disks_are_renewed_for_a_standby_that_was_reached() {
    let bench = Bench::new(&["--disk=path={dir}/disk.img"]);
    let _primary = bench.primary();
    let record = || std::fs::read(bench.path("disk.img.kemari-fence")).unwrap();
    let written = record();
    let refusal = bench.protect().unwrap_err();
    assert!(refusal.contains("cannot reach the standby"), "{refusal}");
    assert!(record() == written, "{}", String::from_utf8_lossy(&record()));
    let _standby = bench.standby(kemari());
    bench.protect().unwrap();
    bench.protected();
    assert!(record() != written);
}

#[test]
fn an_arbiter_that_does_not_answer_is_said() {
    let bench = Bench::new(&[]);
    let _primary = bench.primary();
    let _standby = bench.standby(kemari());
    bench.protect().unwrap();
    bench.protected();
    std::fs::rename(bench.path("arbiter"), bench.path("away")).unwrap();
    bench.degraded("the arbiter is unreachable");
    std::fs::rename(bench.path("away"), bench.path("arbiter")).unwrap();
    bench.protected();

    // The arbiter answers, but would not let this side continue: its data went back to a time
    // before this machine began.
    let term = bench.path(&format!("arbiter/default/term-{:020}.json", 1));
    std::fs::rename(&term, bench.path("away")).unwrap();
    bench.degraded("the arbiter is unreachable");
    std::fs::rename(bench.path("away"), &term).unwrap();
    bench.protected();
}

/// P9: with any limit of descriptors, a standby either protects no guest or can take over.
#[test]
fn a_standby_has_the_descriptors_for_a_takeover() {
    let bench = Bench::new(&["--disk=path={dir}/disk.img"]);
    let limited = |limit: usize| {
        let mut command = tied_to_us(Path::new("sh"));
        command.args(["-c", &format!("ulimit -n {limit}; exec \"$@\""), "sh", KEMARI]);
        command
    };
    refused(
        &bench.as_standby(limited(60)).output().unwrap(),
        &["free descriptors", "ulimit -Hn", "LimitNOFILE="],
    );
    let mut primary = bench.primary();
    // Find the lowest limit that the standby accepts at its start, and the lowest one that suffices
    // for the guest as well.
    let mut limit = 60;
    let mut standby = loop {
        limit += 4;
        let mut standby =
            Process::start("b", bench.as_standby(limited(limit)), &bench.path("b.log")).unwrap();
        if standby.wait_line("listening on", PATIENCE).is_none() {
            continue;
        }
        match bench.protect() {
            Ok(_) => break standby,
            Err(refusal) => {
                assert!(
                    refusal.contains("descriptors") || refusal.contains("open files"),
                    "with {limit}: {refusal}"
                );
            }
        }
        standby.kill().unwrap();
        assert!(limit < 1000);
    };
    bench.protected();
    primary.kill().unwrap();
    bench.wait("b", |status| status["role"] == "primary" && status["state"] == "alone");
    let said = standby.lines().join("\n");
    assert!(!said.contains("open files"), "with {limit}: {said}");
    assert_eq!(standby.exited(), None);
}

/// Leaves a process `free` free descriptors; `None` restores the limit.
fn leave_descriptors(process: &Process, free: Option<u64>) {
    let pid = rustix::process::Pid::from_raw(process.pid().try_into().unwrap());
    let dir = format!("/proc/{}/fd", process.pid());
    let open = || -> BTreeSet<u64> {
        let entries = std::fs::read_dir(&dir).unwrap();
        entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
    };
    // Ignore descriptors that a thread has open only for a moment.
    let used = (0..100).map(|_| open()).reduce(|used, now| &used & &now).unwrap();
    let limit = free.map_or(1000, |free| {
        (0..).filter(|number| !used.contains(number)).nth(free as usize).unwrap()
    });
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit { current: Some(limit), maximum };
    rustix::process::prlimit(pid, Resource::Nofile, limit).unwrap();
}

/// P7: the term is won, and the backends cannot be attached at once. Fails if the standby gives the
/// guest up then.
#[test]
fn p7_a_guest_whose_devices_cannot_be_attached_at_once_goes_on_when_they_can() {
    let bench = Bench::new(&[
        "--disk=path={dir}/disk.img",
        "--net=dgram={dir}/{side}.net:{dir}/peer",
        "--virtio-console=file={dir}/{side}.console",
        "--device=beeper,disk=path={dir}/second.img",
    ]);
    std::fs::copy(bench.path("disk.img"), bench.path("second.img")).unwrap();
    let mut primary = bench.primary();
    let standby = bench.standby(kemari());
    bench.protect().unwrap();
    bench.protected();
    // The standby has prepared the takeover, and cannot ask the arbiter yet.
    std::fs::rename(bench.path("arbiter"), bench.path("away")).unwrap();
    primary.kill().unwrap();
    bench.wait("b", |status| {
        let why = status["reason"].as_str().unwrap_or_default();
        status["state"] == "doubting" && why.contains("the arbiter is unreachable")
    });
    // Enough descriptors to ask the arbiter.
    leave_descriptors(&standby, Some(2));
    std::fs::rename(bench.path("away"), bench.path("arbiter")).unwrap();
    let found = standby.wait_line("the guest waits until this is fixed", PATIENCE);
    assert!(found.is_some(), "{}", standby.lines().join("\n"));
    leave_descriptors(&standby, None);
    bench.wait("b", |status| status["role"] == "primary" && status["state"] == "alone");
    assert_eq!(bench.terms(), 2);
}

/// P9: shortages that a takeover would otherwise find only after it has won the term. The standby's
/// own paths are broken, not the primary's.
#[test]
fn p9_what_a_takeover_would_open_is_looked_at() {
    let bench = Bench::new(&[
        "--disk=path={dir}/disk.img,fence={dir}/{side}.fence",
        "--virtio-console=file={dir}/{side}.d/console",
        // No side is stopped or killed here: a busy machine must not cause a takeover.
        "--heartbeat-timeout=10000",
    ]);
    for side in ["a", "b"] {
        std::fs::create_dir(bench.path(&format!("{side}.d"))).unwrap();
    }
    let (fence, record) = (bench.path("b.fence"), bench.path("a.fence"));
    std::os::unix::fs::symlink(&record, &fence).unwrap();
    let _primary = bench.primary();
    let _standby = bench.standby(kemari());
    bench.protect().unwrap();
    bench.protected();

    let put = |file: &Path| std::fs::rename(file, &fence).unwrap();
    let instead = |make: &dyn Fn(&Path), reason: &str| {
        let new = bench.path("new");
        make(&new);
        std::fs::remove_file(&fence).unwrap();
        put(&new);
        bench.degraded(reason);
        let restored = bench.path("restored");
        std::os::unix::fs::symlink(&record, &restored).unwrap();
        if fence.is_dir() {
            std::fs::remove_dir(&fence).unwrap();
        }
        put(&restored);
        bench.protected();
    };
    instead(&|new| std::fs::write(new, "garbage").unwrap(), "expected a fence record");
    instead(&|new| std::fs::create_dir(new).unwrap(), "b.fence");
    let stale = |new: &Path| {
        let text = std::fs::read_to_string(&record).unwrap();
        std::fs::write(new, text.replace("a@", "x@").replace("primary@", "other@")).unwrap();
    };
    instead(&stale, "it is not the primary's file");
    let same = |new: &Path| {
        std::fs::copy(&record, new).unwrap();
    };
    instead(&same, "another file with the same content");

    let (console, away) = (bench.path("b.d"), bench.path("away.d"));
    std::fs::rename(&console, &away).unwrap();
    bench.degraded("b.d/console");
    std::fs::rename(&away, &console).unwrap();
    bench.protected();

    let disk = std::fs::File::options().write(true).open(bench.path("disk.img")).unwrap();
    for size in [0, 4096, 2 << 20] {
        disk.set_len(size).unwrap();
        bench.degraded("expected 1048576 bytes");
        disk.set_len(1 << 20).unwrap();
        bench.protected();
    }
}

/// P2, P9: a side that could not continue takes no term from its primary. Fails if the tap is
/// opened after the term was won.
#[test]
fn p9_a_takeover_that_could_not_go_on_takes_no_term() {
    if !own_network() {
        return;
    }
    taps_with_a_route();
    // A busy machine must not cause a takeover.
    let bench = Bench::new(&["--net=tap=tap{side}", "--heartbeat-timeout=10000"]);
    let mut primary = bench.primary();
    let _standby = bench.standby(kemari());
    bench.protect().unwrap();
    bench.protected();
    let mut command = kemari();
    command.args(["run", "--serial=none", "--net=tap=tapb", "--kernel"]).arg(micro::image());
    command.arg(format!("--control={}", bench.show("c"))).stdin(Stdio::null());
    let mut other = Process::start("c", command, &bench.path("c.log")).unwrap();
    bench.degraded("tap=tapb: another process has it open");

    primary.kill().unwrap();
    let held = bench.wait("b", |status| {
        let why = status["reason"].as_str().unwrap_or_default();
        status["state"] == "doubting" && why.contains("will not take over")
    });
    assert!(held["reason"].as_str().unwrap().contains("tapb"), "{held}");
    assert_eq!(bench.terms(), 1);
    other.kill().unwrap();
    bench.wait("b", |status| status["role"] == "primary" && status["state"] == "alone");
    assert_eq!(bench.terms(), 2);
}
