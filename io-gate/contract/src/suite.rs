//! Code that the suites of virtio and of register devices share: it guards, logs and compares runs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use crate::violation::{Rule, Violation};

/// A call that has not returned after this time counts as one that never returns.
const DEADLINE: Duration = Duration::from_secs(120);

/// Everything that the guest or the outside can see, in order.
pub(crate) type Log = Vec<String>;

/// Runs `check` in a thread, so that a panic or an endless loop of the device neither ends nor
/// blocks the test program.
pub(crate) fn guarded(
    check: impl FnOnce() -> Result<(), Violation> + Send + 'static,
) -> Result<(), Violation> {
    let (done, ended) = channel();
    let worker = std::thread::spawn(move || {
        let result = catch_unwind(AssertUnwindSafe(check)).unwrap_or_else(|panic| {
            Rule::NoPanic.broken(format!("a panic: {}", panic_text(panic.as_ref())))
        });
        // After the deadline the receiver is gone.
        let _ = done.send(result);
    });
    match ended.recv_timeout(DEADLINE) {
        Ok(result) => {
            let joined = worker.join();
            debug_assert!(joined.is_ok(), "its panics are caught");
            result
        }
        Err(RecvTimeoutError::Timeout) => {
            Rule::Returns.broken(format!("no answer in {} s", DEADLINE.as_secs()))
        }
        Err(RecvTimeoutError::Disconnected) => Rule::NoPanic.broken("a panic without a message"),
    }
}

/// Runs one step. Turns a panic into a violation that names the request.
pub(crate) fn step<R>(asked: &str, run: impl FnOnce() -> R) -> Result<R, Violation> {
    catch_unwind(AssertUnwindSafe(run)).or_else(|panic| {
        Rule::NoPanic.broken(format!("{asked}: a panic: {}", panic_text(panic.as_ref())))
    })
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a word").to_owned()
}

/// Checks that two logs are equal. The error shows the first lines that differ.
pub(crate) fn same(rule: Rule, when: &str, expected: &Log, found: &Log) -> Result<(), Violation> {
    let end = "nothing more".to_owned();
    for at in 0..expected.len().max(found.len()) {
        let (expected, found) = (expected.get(at), found.get(at));
        if expected != found {
            let (expected, found) = (expected.unwrap_or(&end), found.unwrap_or(&end));
            return rule.broken(format!("{when}: expected `{expected}`, found `{found}`"));
        }
    }
    Ok(())
}
