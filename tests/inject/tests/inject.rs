//! Injects faults into calls of unmodified programs: the system's `cat` and `sh`.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kemari_inject::{Call, CallResult, Injector, intercept};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

fn start(
    mut command: Command,
    calls: &[i64],
    rule: impl FnMut(&Call) -> CallResult + Send + 'static,
) -> (Child, Injector) {
    let pending = intercept(&mut command, calls).unwrap();
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    (child.unwrap(), Injector::start(pending.listener().unwrap(), rule))
}

fn cat(calls: &[i64], rule: impl FnMut(&Call) -> CallResult + Send + 'static) -> (Child, Injector) {
    start(Command::new("cat"), calls, rule)
}

/// Returns `answer` once, for the first call of `number` on descriptor `on`.
fn once(
    number: i64,
    on: u64,
    answer: CallResult,
) -> impl FnMut(&Call) -> CallResult + Send + 'static {
    let mut armed = true;
    move |call| match call.number == number && call.arguments[0] == on && armed {
        true => {
            armed = false;
            answer
        }
        false => CallResult::Proceed,
    }
}

const READ_WRITE: &[i64] = &[libc::SYS_read, libc::SYS_write];

#[test]
fn a_call_fails_with_the_error_that_was_chosen() {
    let (child, injector) =
        cat(READ_WRITE, once(libc::SYS_write, 1, CallResult::Fail(libc::ENOSPC)));
    child.stdin.as_ref().unwrap().write_all(b"text").unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("No space left on device"), "{said}");
    assert_eq!(output.stdout, b"");
    injector.finish().unwrap();
}

/// A program that writes the rest after a short write loses nothing. Each write transfers half of
/// the rest.
#[test]
fn half_is_transferred_and_the_program_goes_on() {
    let (sender, asked_for) = std::sync::mpsc::channel();
    let halves = move |call: &Call| match (call.number, call.arguments) {
        (libc::SYS_write, [1, _, count, ..]) => {
            sender.send(count).unwrap();
            if call.can_be_short() { CallResult::Half } else { CallResult::Proceed }
        }
        _ => CallResult::Proceed,
    };
    let (child, injector) = cat(READ_WRITE, halves);
    // One write, so that one read takes it.
    child.stdin.as_ref().unwrap().write_all(b"0123456789abcdefg").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"0123456789abcdefg");
    injector.finish().unwrap();
    assert_eq!(asked_for.iter().collect::<Vec<_>>(), [17, 9, 5, 3, 2, 1]);
}

#[test]
fn a_call_that_hangs_goes_on_when_it_is_released() {
    let (sender, is_hanging) = std::sync::mpsc::channel();
    let mut rule = once(libc::SYS_write, 1, CallResult::Hang);
    let (mut child, injector) = cat(READ_WRITE, move |call| {
        let answer = rule(call);
        if answer == CallResult::Hang {
            sender.send(call.thread_name()).unwrap();
        }
        answer
    });
    child.stdin.as_ref().unwrap().write_all(b"text").unwrap();
    assert_eq!(is_hanging.recv_timeout(Duration::from_secs(60)).unwrap(), "cat");
    // Without the hang, the program would write and end now.
    drop(child.stdin.take());
    let mut wanted = [PollFd::new(child.stdout.as_ref().unwrap(), PollFlags::IN)];
    let time = Timespec::try_from(Duration::from_millis(300)).unwrap();
    assert_eq!(poll(&mut wanted, Some(&time)).unwrap(), 0, "it was written, or has ended");
    assert!(child.try_wait().unwrap().is_none());
    injector.release();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "text");
    assert!(child.wait().unwrap().success());
    injector.finish().unwrap();
}

/// The test checks no upper bound of the delay, which would depend on the machine.
#[test]
fn a_call_is_delayed_and_carried_out() {
    let time = Duration::from_millis(200);
    let (child, injector) = cat(READ_WRITE, once(libc::SYS_write, 1, CallResult::After(time)));
    let begun = Instant::now();
    child.stdin.as_ref().unwrap().write_all(b"text").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"text");
    assert!(begun.elapsed() >= time, "{:?}", begun.elapsed());
    injector.finish().unwrap();
}

/// The rule distinguishes calls by their paths.
#[test]
fn paths_are_told() {
    let dir = std::env::temp_dir().join(format!("kemari-inject-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("file");
    std::fs::write(&file, "text").unwrap();
    let mut command = Command::new("cat");
    command.arg(&file);
    let name = file.display().to_string();
    let (child, injector) = start(command, &[libc::SYS_openat], move |call| {
        match call.path(1).as_deref() == Some(&*name) {
            true => CallResult::Fail(libc::EACCES),
            false => CallResult::Proceed,
        }
    });
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("Permission denied"), "{said}");
    injector.finish().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
}
