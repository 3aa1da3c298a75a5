//! Signals that end the process: the first one ends the machine in good order, the second one ends
//! the process at once.
//!
//! Other signals that would end the process by default and that it does not use are ignored: a
//! signal meant for another process must not end the machine.

use std::time::{Duration, Instant};

use io_gate_host::backend::terminal::RawMode;
use kemari_confine::logging;
use kemari_confine::seccomp::{ENDING, Role};
use kemari_confine::threads;
use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;

/// A second signal within this time counts as the first one. A supervisor may send a signal twice,
/// to the process and to its group; a person needs longer for a second decision.
const ONE_SIGNAL: Duration = Duration::from_secs(1);

/// Whether the parent of this process has made it ignore a signal: `nohup`, or a shell without job
/// control for its background jobs.
fn is_ignored(signal: i32) -> bool {
    handler(signal) == Some(libc::SIG_IGN) && signal != SIGTERM
}

/// The current handler of a signal; `None` if there is no such signal, or if the C library reserves
/// it.
fn handler(signal: i32) -> Option<libc::sighandler_t> {
    // SAFETY: all-zero bytes are a valid `sigaction`: no handler, an empty mask, no flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: `action` is valid to be written to; nothing is changed.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    (asked == 0).then_some(action.sa_sigaction)
}

/// Ignores the signals that this program neither sends nor uses and that would end it (signal(7)):
/// user-defined signals, timers, I/O, power, and the real-time signals that have no handler.
fn ignore_what_means_nothing() {
    use libc::{SIGALRM, SIGIO, SIGPROF, SIGPWR, SIGSTKFLT, SIGUSR1, SIGUSR2, SIGVTALRM};
    let named = [SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO, SIGPWR, SIGSTKFLT];
    for signal in named.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX()) {
        if handler(signal) == Some(libc::SIG_DFL) {
            // SAFETY: a system call; no handler is installed.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
    }
}

/// P7: makes a write beyond a limit of file sizes (`ulimit -f`) fail with EFBIG, as on a full disk.
/// By default the signal SIGXFSZ ends the process, and a guest that prints enough could cause that.
pub fn bear_limits_of_files() {
    // SAFETY: a system call; no handler is installed.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Calls `first` in a thread of its own when SIGINT, SIGTERM, SIGQUIT, SIGHUP or SIGXCPU arrives. A
/// later signal ends the process at once, for instance when the orderly end waits for a disk that
/// does not answer.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn watch(first: impl FnOnce(i32) + Send + 'static) -> std::io::Result<()> {
    ignore_what_means_nothing();
    let asked = ENDING.into_iter().filter(|signal| !is_ignored(*signal));
    let mut signals = Signals::new(asked)?;
    threads::start("signals", Role::Signals, move || {
        let mut first = Some(first);
        let mut came = Instant::now();
        for number in signals.forever() {
            match first.take() {
                Some(first) => {
                    came = Instant::now();
                    first(number);
                }
                None if came.elapsed() < ONE_SIGNAL => {}
                None => {
                    RawMode::restore();
                    log::error!("signal {number} again: ending at once");
                    logging::flush();
                    std::process::exit(128 + number);
                }
            }
        }
    })?;
    Ok(())
}
