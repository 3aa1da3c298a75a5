//! The console's terminal as seccomp and the log see it: every thread may restore its former mode before the process ends.

use std::os::fd::RawFd;
use std::sync::OnceLock;

/// What the owner of the terminal passes in.
#[derive(Clone, Copy, Debug)]
pub struct Terminal {
    /// Requests go to this descriptor only.
    pub descriptor: RawFd,
    /// The requests that the thread which makes it raw needs (ioctl_tty(2)).
    pub requests: &'static [u64],
    /// The address of the former mode, from which the terminal is restored.
    pub restores_from: u64,
    /// Restores the terminal. It must be safe in a signal handler.
    pub restore: fn(),
}

static TERMINAL: OnceLock<Terminal> = OnceLock::new();

/// Only the first call counts: a process has one terminal.
pub(crate) fn hand_in(terminal: Terminal) {
    let _ = TERMINAL.set(terminal);
}

/// The terminal, if one was passed in.
pub(crate) fn get() -> Option<&'static Terminal> {
    TERMINAL.get()
}

/// Restores the terminal. May be called in a signal handler and more than once.
pub(crate) fn restore() {
    if let Some(terminal) = get() {
        (terminal.restore)();
    }
}
