//! The console's terminal as seccomp and the log see it: every thread may restore its former mode
//! before the process ends.

use std::os::fd::RawFd;
use std::sync::OnceLock;

/// The terminal, as its owner passes it in.
#[derive(Clone, Copy, Debug)]
pub struct Terminal {
    /// The terminal's descriptor; no request goes to another.
    pub descriptor: RawFd,
    /// The requests that the thread `terminal` needs to make it raw (ioctl_tty(2)).
    pub requests: &'static [u64],
    /// The address of the former mode, which is written to restore the terminal.
    pub restores_from: u64,
    /// Restores the terminal. It must be safe to call in a signal handler.
    pub restore: fn(),
}

static TERMINAL: OnceLock<Terminal> = OnceLock::new();

/// Sets the terminal. Only the first call has an effect: a process has one terminal.
pub(crate) fn hand_in(terminal: Terminal) {
    let _ = TERMINAL.set(terminal);
}

/// The terminal, if one was passed in.
pub(crate) fn get() -> Option<&'static Terminal> {
    TERMINAL.get()
}

/// Restores the terminal. Safe in a signal handler; may run more than once.
pub(crate) fn restore() {
    if let Some(terminal) = get() {
        (terminal.restore)();
    }
}
