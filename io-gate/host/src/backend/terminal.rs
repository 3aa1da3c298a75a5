//! The terminal's raw mode for a console, and its restoration however the process ends.
//!
//! A process in the background must not touch the terminal, which belongs to its shell: it would be
//! stopped (SIGTTOU, SIGTTIN), and a standby started with `&` must be able to take over. The
//! terminal becomes raw when the process is in the foreground or comes there.

use std::cell::UnsafeCell;
use std::io::{self, IsTerminal};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use rustix::io::Errno;
use rustix::process::getpgrp;
use rustix::stdio::stdin;
use rustix::termios::tcgetpgrp;

use crate::descriptors::CONSOLE_INPUT;

/// The terminal's descriptor, for system call filters.
pub const TERMINAL: RawFd = CONSOLE_INPUT;
/// The requests to the terminal: get its mode, set its mode, get the foreground process group
/// (ioctl_tty(2)). They are made directly, because C libraries implement `tcsetattr` with different
/// requests.
pub const REQUESTS: [u64; 3] = [libc::TCGETS, libc::TCSETS, libc::TIOCGPGRP];

struct Before(UnsafeCell<libc::termios>);

// SAFETY: written under `CHANGES` while `IS_RAW` is not set; read only by the caller that cleared
// it.
unsafe impl Sync for Before {}

// SAFETY: all-zero bytes are a valid `termios`: it is plain numbers.
static BEFORE: Before = Before(UnsafeCell::new(unsafe { std::mem::zeroed() }));
/// Whether the terminal is raw and `BEFORE` holds its former mode.
static IS_RAW: AtomicBool = AtomicBool::new(false);
/// Whether raw mode is wanted.
static WANTED: AtomicBool = AtomicBool::new(false);
/// Serializes changes. Held for three requests to the terminal, none of which blocks.
static CHANGES: Mutex<()> = Mutex::new(());

/// Keeps the terminal in raw mode: the guest gets keys as they are typed. The former mode is
/// restored when the guard is dropped and when any thread panics. On a signal, the process must end
/// in good order and drop the guard.
#[derive(Debug)]
#[must_use = "the terminal is restored when the guard is dropped"]
pub struct RawMode(());

impl RawMode {
    /// Makes the terminal raw. Does nothing if standard input is not a terminal. In the background,
    /// a later call of [`follow`](Self::follow) makes it raw.
    ///
    /// # Errors
    /// When the terminal refuses.
    pub fn enter() -> io::Result<Self> {
        let guard = Self(());
        if io::stdin().is_terminal() {
            WANTED.store(true, Ordering::SeqCst);
            restore_on_panic();
            Self::follow()?;
        }
        Ok(guard)
    }

    /// Makes the terminal raw if that is wanted, not yet done, and this process is in the
    /// foreground. Call this regularly: no signal arrives when a shell brings a running job to the
    /// foreground.
    ///
    /// # Errors
    /// When the terminal refuses.
    pub fn follow() -> io::Result<()> {
        let _changes = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
        if !WANTED.load(Ordering::SeqCst) || !is_in_foreground() {
            return Ok(());
        }
        let before = attributes()?;
        if before.c_lflag & libc::ICANON == 0 && IS_RAW.load(Ordering::SeqCst) {
            return Ok(());
        }
        let mut raw = before;
        // SAFETY: `raw` is a valid `termios`.
        unsafe { libc::cfmakeraw(&raw mut raw) };
        // Keep the output's line ends: log lines and the guest's output share the terminal.
        raw.c_oflag = before.c_oflag;
        IS_RAW.store(false, Ordering::SeqCst);
        // SAFETY: it is not read while the flag is not set, and the lock excludes other writers.
        unsafe { *BEFORE.0.get() = before };
        IS_RAW.store(true, Ordering::SeqCst);
        set(&raw const raw)
    }

    /// Restores the terminal now. For a process that ends without unwinding; a signal handler may
    /// call it too. May be called twice.
    pub fn restore() {
        WANTED.store(false, Ordering::SeqCst);
        // In the background, leave the terminal in the mode that the foreground process has set.
        if IS_RAW.swap(false, Ordering::SeqCst) && is_in_foreground() {
            // If the terminal is gone, there is nothing to restore.
            let _ = set(BEFORE.0.get());
        }
    }

    /// The address of the former mode, for system call filters: the mode is set from this address.
    #[must_use]
    pub fn restores_from() -> u64 {
        BEFORE.0.get() as u64
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        Self::restore();
    }
}

/// Whether standard input is a terminal.
#[must_use]
pub fn is_attached() -> bool {
    io::stdin().is_terminal()
}

/// Makes a call on another process group's terminal fail instead of stopping this process. The
/// terminal may change hands between the check and the call.
pub fn never_stop() {
    for signal in [libc::SIGTTIN, libc::SIGTTOU] {
        // SAFETY: a system call; no handler is installed.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Whether this process may change the terminal. A terminal that does not control this process is
/// not under job control, so it may be changed.
fn is_in_foreground() -> bool {
    match tcgetpgrp(stdin()) {
        Ok(group) => group == getpgrp(),
        Err(error) => error == Errno::NOTTY,
    }
}

fn restore_on_panic() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let next = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // Restore first, so that the message is readable.
            RawMode::restore();
            next(info);
        }));
    });
}

fn attributes() -> io::Result<libc::termios> {
    // SAFETY: all-zero bytes are a valid `termios`: it is plain numbers.
    let mut attributes: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel's `termios` is the beginning of the library's.
    match unsafe { libc::ioctl(CONSOLE_INPUT, libc::TCGETS, &raw mut attributes) } {
        0 => Ok(attributes),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set(attributes: *const libc::termios) -> io::Result<()> {
    // SAFETY: the kernel's `termios` is the beginning of the library's, which lives through the
    // call.
    match unsafe { libc::ioctl(CONSOLE_INPUT, libc::TCSETS, attributes) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
