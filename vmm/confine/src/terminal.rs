//! The terminal of the console, as seccomp and the log see it: every thread may give it its former mode back before the process ends.

use std::os::fd::RawFd;
use std::sync::OnceLock;

/// What the owner of the terminal hands in.
#[derive(Clone, Copy, Debug)]
pub struct Terminal {
    /// Requests are made to this descriptor only.
    pub descriptor: RawFd,
    /// The requests of the thread that makes it raw (ioctl_tty(2)).
    pub requests: &'static [u64],
    /// The address of the former mode, from which the terminal is restored.
    pub restores_from: u64,
    /// Restores the terminal. Runs in a signal handler, too.
    pub restore: fn(),
}

static TERMINAL: OnceLock<Terminal> = OnceLock::new();

/// The first call counts: a process has one terminal.
pub(crate) fn hand_in(terminal: Terminal) {
    let _ = TERMINAL.set(terminal);
}

/// The terminal, if one was handed in.
pub(crate) fn get() -> Option<&'static Terminal> {
    TERMINAL.get()
}

/// Restores the terminal. May be called in a signal handler, and more than once.
pub(crate) fn restore() {
    if let Some(terminal) = get() {
        (terminal.restore)();
    }
}
