//! Faults in single system calls of the real binary, which the fault table has found (`cargo xtask
//! faults`).
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod micro;

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kemari_inject::{Call, CallResult, Injector, intercept};
use kemari_workload::Op;
use micro::Guest;
use rustix::process::Signal;

/// With this timeout, no side is suspected while this host is busy.
const PATIENT: [&str; 2] = ["--heartbeat-timeout", "10000"];
/// KVM_RUN.
const RUN: u64 = 0xae80;
/// Number of repetitions of a message that may be lost. They take a minute: more than a busy host
/// needs.
const TRIES: u64 = 120;

/// A machine whose `KVM_RUN` fails after [`fail`](Self::fail) was called.
struct Faulty {
    guest: Guest,
    armed: Arc<AtomicBool>,
    _injector: Injector,
}

impl Faulty {
    fn boot(flags: &[&str], error: i32) -> Self {
        let mut pending = None;
        let guest = Guest::boot_as(1, flags, |command| {
            pending = Some(intercept(command, &[libc::SYS_ioctl]).unwrap());
        });
        let armed = Arc::new(AtomicBool::new(false));
        let fails = armed.clone();
        let rule = move |call: &Call| match call.arguments[1] == RUN && fails.load(Ordering::SeqCst)
        {
            true => CallResult::Fail(error),
            false => CallResult::Proceed,
        };
        let injector = Injector::start(pending.unwrap().listener().unwrap(), rule);
        Self { guest, armed, _injector: injector }
    }

    /// Makes `KVM_RUN` fail; returns the exit code of the machine.
    fn fail(&mut self) -> Option<i32> {
        self.guest.ask(Op::Ping);
        self.armed.store(true, Ordering::SeqCst);
        // To print, the vCPU leaves KVM and enters it again.
        let ended = (0..TRIES).find_map(|number| {
            self.guest.tell(Op::ConsoleMark { number });
            self.guest.process.wait_exit(Duration::from_millis(500))
        });
        ended.unwrap().code()
    }
}

/// P7, P9. Fails if a vCPU that KVM does not run counts as running: the guest stands still, and its
/// machine reports nothing and cannot be paused.
#[test]
fn p7_a_vcpu_that_kvm_never_runs_is_a_failure() {
    let mut faulty = Faulty::boot(&[], libc::EAGAIN);
    assert_eq!(faulty.fail(), Some(1), "{:?}", faulty.guest.process.lines());
    let said = faulty.guest.process.wait_line("KVM_RUN failed", Duration::from_secs(60));
    assert!(said.is_some(), "{:?}", faulty.guest.process.lines());
}

/// P7. When a machine without a standby fails, no other machine can continue its guest: the next
/// start need not seize the name. Fails if the term is left to a standby that does not exist.
#[test]
fn p7_the_name_of_a_machine_that_fails_alone_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let arbiter = format!("file:{}", dir.path().display());
    let flags = ["--arbiter", arbiter.as_str(), "--name", "vm"];
    let mut faulty = Faulty::boot(&flags, libc::ENOMEM);
    assert_eq!(faulty.fail(), Some(1), "{:?}", faulty.guest.process.lines());
    Guest::boot_with(1, &flags).ask(Op::Ping);
}

/// P7. As above, for a machine that has connected to a standby without a checkpoint: that standby
/// cannot take over.
#[test]
fn p7_the_name_of_a_machine_that_fails_before_its_standby_holds_it_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let arbiter = format!("file:{}", dir.path().display());
    let link = dir.path().join("link");
    let standby = UnixListener::bind(&link).unwrap();
    let flags = ["--arbiter", arbiter.as_str(), "--name", "vm"];
    let link = format!("unix:{}", link.display());
    let protected = [&flags[..], &["--standby", &link], &PATIENT].concat();
    let mut faulty = Faulty::boot(&protected, libc::ENOMEM);
    // The primary sends its Hello and gets no answer.
    let (mut connection, _) = standby.accept().unwrap();
    connection.read_exact(&mut [0]).unwrap();
    assert_eq!(faulty.fail(), Some(1), "{:?}", faulty.guest.process.lines());
    Guest::boot_with(1, &flags).ask(Op::Ping);
}

/// P9. Fails if the end of a process waits without a limit for storage that does not answer and has
/// the process's own files.
#[test]
fn p9_an_end_does_not_wait_for_its_own_files() {
    let mut pending = None;
    let mut guest = Guest::boot_as(1, &[], |command| {
        pending = Some(intercept(command, &[libc::SYS_renameat2]).unwrap());
    });
    let _injector = Injector::start(pending.unwrap().listener().unwrap(), |_| CallResult::Hang);
    guest.ask(Op::Ping);
    guest.process.signal(Signal::TERM);
    let ended = guest.process.wait_exit(Duration::from_secs(300));
    assert_eq!(ended.unwrap().code(), Some(143), "{:?}", guest.process.lines());
}
