//! Starts the product, built from the scratch copy, with a device of an attack: tests what the gate does at run time.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::calls;
use crate::subject::Subject;
use xtask_common::build;

/// The exit codes of a refusal at start, and of a system call that a thread may not make.
const REFUSED: [i32; 2] = [2, 159];
/// A machine that has run for this long has accepted the device.
const LET_IN: Duration = Duration::from_secs(10);

/// The product's last output, if it ended: the gate stopped the device.
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
        Some(code) if REFUSED.contains(&code) => Ok(Some(said)),
        // The guest came to its end: the product accepted the device.
        Some(0) => Ok(None),
        _ => bail!("the product ended with {}: {said}", ended.status),
    }
}
