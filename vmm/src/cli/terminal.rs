//! The terminal of a guest whose console is on standard input and output.

use std::io::IsTerminal;
use std::time::Duration;

use io_gate_host::backend::terminal::{self, RawMode};
use kemari_confine::seccomp::Role;
use kemari_confine::threads;
use kemari_machine::config::MachineConfig;

/// Sets the terminal to raw mode if the guest's console is on it: now, or when this process comes
/// to the foreground. P7: the guest does not depend on the terminal, so a failure is only reported.
pub(super) fn enter(config: &MachineConfig) -> Option<RawMode> {
    if !config.is_on_stdio() {
        return None;
    }
    if shares_terminal_with_log() {
        log::info!(
            "the guest's console and this log share a terminal: add `2>>FILE` to the command to write the log to a file"
        );
    }
    match RawMode::enter() {
        Ok(raw) => {
            if terminal::is_attached() {
                follow();
            }
            Some(raw)
        }
        Err(error) => {
            log::warn!(
                "cannot set the terminal to raw mode: {error}; the guest gets lines, not keys"
            );
            None
        }
    }
}

/// Whether standard output and standard error are one terminal.
fn shares_terminal_with_log() -> bool {
    let (output, error) = (std::io::stdout(), std::io::stderr());
    let device =
        |found: rustix::io::Result<rustix::fs::Stat>| found.ok().map(|found| found.st_rdev);
    output.is_terminal()
        && error.is_terminal()
        && device(rustix::fs::fstat(&output)) == device(rustix::fs::fstat(&error))
}

/// Polls the terminal: the kernel does not notify a process when its shell brings it to the
/// foreground.
fn follow() {
    const EVERY: Duration = Duration::from_millis(500);
    let poll = || {
        // A terminal that is gone does not come back.
        while RawMode::follow().is_ok() {
            std::thread::sleep(EVERY);
        }
    };
    if let Err(error) = threads::start("terminal", Role::Terminal, poll) {
        log::warn!(
            "cannot follow the terminal: {error}; after `fg` the guest gets lines, not keys"
        );
    }
}
