//! Faults in single system calls of the real binary: what the table of faults (`cargo xtask faults`) has shown.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod micro;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kemari_inject::{Answer, Call, Injector, intercept};
use kemari_workload::Op;
use micro::Guest;

/// KVM_RUN.
const RUN: u64 = 0xae80;
/// A message may be lost, and is repeated. So many are a minute: more than a busy host needs.
const TRIES: u64 = 120;

/// P7. Nobody else can go on with the guest of a machine that fails alone: whoever starts it next need not take it from
/// anybody. Fails where its term is left to a standby that there is not.
#[test]
fn p7_the_name_of_a_machine_that_fails_alone_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let arbiter = format!("file:{}", dir.path().display());
    let flags = ["--arbiter", arbiter.as_str(), "--name", "vm"];
    let mut pending = None;
    let mut guest = Guest::boot_as(1, &flags, |command| {
        pending = Some(intercept(command, &[libc::SYS_ioctl]).unwrap());
    });
    let armed = Arc::new(AtomicBool::new(false));
    let fails = armed.clone();
    let rule = move |call: &Call| match call.arguments[1] == RUN && fails.load(Ordering::SeqCst) {
        true => Answer::Fail(libc::ENOMEM),
        false => Answer::Proceed,
    };
    let _injector = Injector::start(pending.unwrap().listener().unwrap(), rule);
    guest.ask(Op::Ping);
    armed.store(true, Ordering::SeqCst);
    // Its vCPU comes out of KVM to print, and goes in again.
    let ended = (0..TRIES).find_map(|number| {
        guest.tell(Op::ConsoleMark { number });
        guest.process.wait_exit(Duration::from_millis(500))
    });
    assert_eq!(ended.unwrap().code(), Some(1), "{:?}", guest.process.lines());
    Guest::boot_with(1, &flags).ask(Op::Ping);
}
