//! Starts the product, built from the scratch copy, with a device of an attack: tests what the gate
//! does at run time.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::calls;
use crate::subject::Subject;
use xtask_common::build;

/// The exit codes for a device whose crate the gate does not check, and for a system call that a
/// thread may not make, each with a part of the product's message. The message counts, because the
/// product ends with code 2 for other reasons as well, for instance for an unknown device.
const REFUSED: [(i32, &str); 2] =
    [(2, "which `cargo xtask gate` does not check"), (159, "tried the system call")];
/// A machine that has run for this long has accepted the device.
const LET_IN: Duration = Duration::from_secs(10);

/// Starts the product with the device. Returns its output if it refused the device, or `None` if it
/// accepted the device.
pub(super) fn with(subject: &Subject, device: &str) -> Result<Option<String>> {
    let program = calls::runnable(subject)?;
    let guest = build::micro_guest()?;
    let mut kemari = Command::new(program);
    kemari.args(["run", "--serial", "none", "--memory", "64", "--device", device, "--kernel"]);
    kemari.arg(guest).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut running = kemari.spawn().context("cannot start the product")?;
    let begin = Instant::now();
    while running.try_wait()?.is_none() {
        if begin.elapsed() > LET_IN {
            running.kill()?;
            running.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let ended = running.wait_with_output()?;
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    match ended.status.code() {
        Some(code) if is_refusal(code, &said) => Ok(Some(said)),
        // The guest ended by itself: the product accepted the device.
        Some(0) => Ok(None),
        _ => bail!("the product ended with {}: {said}", ended.status),
    }
}

fn is_refusal(code: i32, said: &str) -> bool {
    REFUSED.iter().any(|(refusal, words)| *refusal == code && said.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_gates_refusal_and_the_filter_count() {
        let gate = "device `leaky::Pager`: expected a type of one of the crates [\"a\"], found one of `leaky`, which \
            `cargo xtask gate` does not check: make it a module";
        assert!(is_refusal(2, gate));
        assert!(is_refusal(159, "thread device tried the system call socket"));
        assert!(!is_refusal(2, "--device: expected one of `beeper`, `pager`, found `leaky`"));
        assert!(!is_refusal(1, gate));
    }
}
