//! The terminal's raw mode, for a console on it, and its restoration however the process ends.

use std::io;
use std::sync::{Mutex, Once, PoisonError};

use super::console::is_terminal;
use crate::descriptors::CONSOLE_INPUT;

/// How the terminal was before, while it is raw. In a static, so that the panic hook finds it.
static BEFORE: Mutex<Option<libc::termios>> = Mutex::new(None);

/// Keeps the terminal in raw mode: keys go to the guest as they are typed. The former mode comes
/// back when the guard is dropped and when any thread panics; on a signal, the process has to end
/// in good order and drop the guard.
#[derive(Debug)]
#[must_use = "the terminal is restored when the guard is dropped"]
pub struct RawMode(());

impl RawMode {
    /// Makes the terminal raw; does nothing when standard input is none.
    ///
    /// # Errors
    /// When the terminal refuses.
    pub fn enter() -> io::Result<Self> {
        if is_terminal(&io::stdin()) {
            let before = attributes()?;
            let mut raw = before;
            // SAFETY: `raw` is a valid `termios`.
            unsafe { libc::cfmakeraw(&raw mut raw) };
            // Output keeps its line ends: log lines and the guest's share the terminal.
            raw.c_oflag = before.c_oflag;
            *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
            restore_on_panic();
            set(&raw)?;
        }
        Ok(Self(()))
    }

    /// Restores the terminal now; for a process that ends without unwinding. May be called twice.
    pub fn restore() {
        let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(before) = before {
            // Nothing is left to be done if the terminal is gone.
            let _ = set(&before);
        }
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        Self::restore();
    }
}

fn restore_on_panic() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let next = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // First, so that the message is readable.
            RawMode::restore();
            next(info);
        }));
    });
}

fn attributes() -> io::Result<libc::termios> {
    // SAFETY: all-zero bytes are a valid `termios`: it is plain numbers.
    let mut attributes: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: `attributes` is a valid `termios` to write to.
    match unsafe { libc::tcgetattr(CONSOLE_INPUT, &raw mut attributes) } {
        0 => Ok(attributes),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set(attributes: &libc::termios) -> io::Result<()> {
    // SAFETY: `attributes` is a valid `termios`.
    match unsafe { libc::tcsetattr(CONSOLE_INPUT, libc::TCSANOW, attributes) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
