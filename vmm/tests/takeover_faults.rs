//! Single system calls of a pair fail or hang, before, during and right after a takeover. The pair
//! runs the real binary, and the test answers the calls.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod micro;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kemari_inject::{Call, CallResult, Injector, intercept};
use kemari_testbed::pair::status::{Status, control};
use kemari_testbed::process::{Process, tied_to_us};
use kemari_workload::Op;
use micro::{Guest, KEMARI};
use rustix::process::Signal;
use serde_json::Value;

/// KVM_RUN.
const RUN: u64 = 0xae80;
/// Only failures take this long, even on a busy host.
const PATIENCE: Duration = Duration::from_secs(300);
/// With this timeout, no side is suspected while this host is busy.
const PATIENT: [&str; 2] = ["--heartbeat-timeout", "10000"];

struct Bench {
    dir: tempfile::TempDir,
    arbiter: String,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let arbiter = format!("file:{}", dir.path().join("arbiter").display());
        Self { dir, arbiter }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A guest that answers requests; `change` changes the command of its process.
    fn guest(&self, change: impl FnOnce(&mut Command)) -> Guest {
        let socket = self.path("a").display().to_string();
        let mut flags = vec!["--control", &socket, "--arbiter", &self.arbiter];
        flags.extend(PATIENT);
        let mut guest = Guest::boot_as(1, &flags, change);
        guest.ask(Op::Ping);
        guest
    }

    /// The guest's standby; `change` changes the command of its process.
    fn standby(&self, guest: &Guest, change: impl FnOnce(&mut Command)) -> Process {
        let disk = guest.dir.path().join("disk.img");
        let mut command = tied_to_us(Path::new(KEMARI));
        command
            .args(["standby", "--rng", "--serial", "none", "--virtio-console", "none"])
            .args(["--listen", &self.link(), "--arbiter", &self.arbiter])
            .args(["--disk", &format!("path={},serial=micro", disk.display())])
            .args(["--net", &format!("stream={}", self.path("nobody").display())])
            .args(["--stall-timeout", "5000"])
            .args(PATIENT)
            .arg("--control")
            .arg(self.path("b"))
            .stdin(Stdio::null());
        change(&mut command);
        let standby = Process::start("b", command, &self.path("b.log")).unwrap();
        standby.wait_line("listening on", PATIENCE).unwrap();
        standby
    }

    fn link(&self) -> String {
        format!("unix:{}", self.path("link").display())
    }

    fn protect(&self) -> Result<Value, String> {
        let patience = PATIENCE.as_secs().to_string();
        let command = ["--timeout", &patience, "protect", &self.link()];
        control(Path::new(KEMARI), &self.path("a"), &command).map_err(|error| format!("{error:#}"))
    }

    #[track_caller]
    fn wait(&self, side: &str, until: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = Status::ask(Path::new(KEMARI), &self.path(side));
            let found = found.ok().map(|status| status.json().clone());
            if found.as_ref().is_some_and(&until) {
                return;
            }
            assert!(Instant::now() < deadline, "{side}: {found:?}");
            std::thread::yield_now();
        }
    }
}

/// Answers the system calls of a process by a rule, once it is armed.
struct Faults {
    armed: Arc<AtomicBool>,
    injector: Injector,
}

impl Faults {
    fn arm(&self) {
        self.armed.store(true, Ordering::SeqCst);
    }
}

/// Starts a process by `start`, and answers its `calls` by `rule`.
fn faulty<P>(
    calls: &[libc::c_long],
    rule: impl FnMut(&Call) -> CallResult + Send + 'static,
    start: impl FnOnce(&mut dyn FnMut(&mut Command)) -> P,
) -> (P, Faults) {
    let armed = Arc::new(AtomicBool::new(false));
    let (mut rule, mut begun) = (Some(rule), None);
    let mut prepare = |command: &mut Command| {
        let pending = intercept(command, calls).unwrap();
        let (armed, mut rule) = (armed.clone(), rule.take().expect("one process"));
        // The listener is available when the process has been started.
        let answering = std::thread::spawn(move || {
            let rule = move |call: &Call| match armed.load(Ordering::SeqCst) {
                true => rule(call),
                false => CallResult::Proceed,
            };
            Injector::start(pending.listener().unwrap(), rule)
        });
        begun = Some(answering);
    };
    let process = start(&mut prepare);
    let injector = begun.unwrap().join().unwrap();
    (process, Faults { armed, injector })
}

/// All intercepted calls of the device thread hang.
fn devices_hang(call: &Call) -> CallResult {
    match is_by(call, "devices") {
        true => CallResult::Hang,
        false => CallResult::Proceed,
    }
}

fn is_by(call: &Call, thread: &str) -> bool {
    call.thread_name().starts_with(thread)
}

/// P9. Fails if a standby reports that it can take over although KVM will not run its guest: KVM
/// may need a thread of this user.
#[test]
fn p9_a_standby_whose_kvm_runs_nothing_is_refused() {
    let bench = Bench::new();
    let guest = bench.guest(|_| {});
    let rule = |call: &Call| match call.arguments[1] {
        RUN => CallResult::Fail(libc::EAGAIN),
        _ => CallResult::Proceed,
    };
    let (_standby, faults) =
        faulty(&[libc::SYS_ioctl], rule, |change| bench.standby(&guest, change));
    faults.arm();
    let refused = bench.protect().unwrap_err();
    assert!(refused.contains("KVM cannot run the guest"), "{refused}");
}

/// P7. Fails if a hanging read of the fence holds the guest up as long as it hangs: no call of this
/// side can take effect later, so the standby may take over.
#[test]
fn p7_the_standby_goes_on_from_a_lane_that_hangs_in_a_look_at_the_fence() {
    let bench = Bench::new();
    let rule = |call: &Call| match is_by(call, "net") {
        true => CallResult::Hang,
        false => CallResult::Proceed,
    };
    let (mut guest, faults) = faulty(&[libc::SYS_close], rule, |change| bench.guest(change));
    let standby = bench.standby(&guest, |_| {});
    bench.protect().unwrap();
    faults.arm();
    guest.tell(Op::Ping);
    standby.wait_line("took over in term", PATIENCE).expect("the guest continues");
    let ended = guest.process.wait_exit(PATIENCE).unwrap();
    assert_eq!(ended.code(), Some(3), "P2: {:?}", guest.process.lines());
}

/// P2, P9. Fails if a machine whose packets do not leave reports `protected`: a lane hangs in a
/// system call of the network. The standby does not take over, because the call may still be
/// performed.
#[test]
fn p9_a_machine_whose_output_hangs_in_a_system_call_is_stalled() {
    let bench = Bench::new();
    let rule = |call: &Call| match is_by(call, "net") {
        true => CallResult::Hang,
        false => CallResult::Proceed,
    };
    let (mut guest, faults) = faulty(&[libc::SYS_sendmsg], rule, |change| bench.guest(change));
    let _standby = bench.standby(&guest, |_| {});
    bench.protect().unwrap();
    bench.wait("a", |status| status["state"] == "protected");
    faults.arm();
    guest.tell(Op::Ping);
    bench.wait("a", |status| {
        let why = status["reason"].as_str().unwrap_or_default();
        status["state"] == "stalled" && why.contains("the lane net")
    });
    bench.wait("b", |status| status["state"] == "ready");
    faults.injector.release();
    bench.wait("a", |status| status["state"] == "protected");
}

/// P9. Fails if a side that could not take over reports `ready`, and the other side `protected`.
#[test]
fn p9_a_standby_whose_device_thread_hangs_is_not_ready() {
    let bench = Bench::new();
    let guest = bench.guest(|_| {});
    let (_standby, faults) =
        faulty(&[libc::SYS_read], devices_hang, |change| bench.standby(&guest, change));
    bench.protect().unwrap();
    bench.wait("b", |status| status["state"] == "ready");
    faults.arm();
    for side in ["a", "b"] {
        bench.wait(side, |status| {
            let why = status["reason"].as_str().unwrap_or_default();
            let is_ready = status["state"] == "protected" || status["state"] == "ready";
            !is_ready && why.contains("device thread")
        });
    }
    faults.injector.release();
    bench.wait("a", |status| status["state"] == "protected");
    bench.wait("b", |status| status["state"] == "ready");
}

/// P9. Fails if a takeover that has won its term waits forever, and its cause is not reported.
#[test]
fn p9_what_a_takeover_hangs_in_is_told() {
    let bench = Bench::new();
    let mut guest = bench.guest(|_| {});
    let (standby, faults) =
        faulty(&[libc::SYS_epoll_ctl], devices_hang, |change| bench.standby(&guest, change));
    bench.protect().unwrap();
    faults.arm();
    guest.process.signal(Signal::KILL);
    standby.wait_line("the guest does not continue: ", PATIENCE).unwrap();
    bench.wait("b", |status| {
        status["lacks"].as_str().is_some_and(|lacks| lacks.contains("the device thread"))
    });
    faults.injector.release();
    standby.wait_line("took over in term", PATIENCE).expect("the guest continues");
    bench.wait("b", |status| status["state"] == "alone");
}

/// P9. Fails if the watchdog waits for a first sign of progress from devices that have hung since
/// the guest began to run here.
#[test]
fn p9_a_machine_that_hangs_right_after_a_takeover_is_stalled() {
    let bench = Bench::new();
    let mut guest = bench.guest(|_| {});
    let mut is_started = false;
    // A vCPU gives up its unneeded rights right before it first runs the guest.
    let rule = move |call: &Call| {
        is_started |= call.number == libc::SYS_seccomp && is_by(call, "vcpu");
        match is_started && is_by(call, "devices") {
            true => CallResult::Hang,
            false => CallResult::Proceed,
        }
    };
    let calls = [libc::SYS_seccomp, libc::SYS_epoll_wait, libc::SYS_epoll_pwait];
    let (standby, faults) = faulty(&calls, rule, |change| bench.standby(&guest, change));
    bench.protect().unwrap();
    faults.arm();
    guest.process.signal(Signal::KILL);
    standby.wait_line("took over in term", PATIENCE).unwrap();
    standby.wait_line("have made no progress", PATIENCE).expect("a stall that is told");
    bench.wait("b", |status| status["state"] == "stalled");
    faults.injector.release();
    bench.wait("b", |status| status["state"] == "alone");
}

/// P7. If any thread of a takeover cannot be started at first, the guest continues. Fails if a
/// thread that is missing for a moment ends the only side that has the guest.
#[test]
fn p7_a_takeover_that_lacks_a_thread_for_a_moment_goes_on() {
    /// More threads than a takeover starts.
    const MOST: u64 = 60;
    for fails in 1.. {
        assert!(fails < MOST, "it starts ever more threads");
        let bench = Bench::new();
        let mut guest = bench.guest(|_| {});
        let begun = Arc::new(AtomicU64::new(0));
        let counted = begun.clone();
        let rule = move |_: &Call| match counted.fetch_add(1, Ordering::SeqCst) + 1 == fails {
            true => CallResult::Fail(libc::EAGAIN),
            false => CallResult::Proceed,
        };
        let (standby, faults) =
            faulty(&[libc::SYS_clone3], rule, |change| bench.standby(&guest, change));
        bench.protect().unwrap();
        faults.arm();
        guest.process.signal(Signal::KILL);
        let line = standby.wait_line("took over in term", PATIENCE);
        assert!(line.is_some(), "without thread {fails}: {:?}", standby.lines());
        if begun.load(Ordering::SeqCst) < fails {
            assert!(fails > 4, "it has started {} threads only", fails - 1);
            return;
        }
    }
}
