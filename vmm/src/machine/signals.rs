//! Signals that ask the process to end: the first ends the machine in good order, the second at once.

use std::time::{Duration, Instant};

use io_gate_host::backend::terminal::RawMode;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::logging;
use crate::seccomp::{self, Role};

/// A supervisor may send one signal twice, to the process and to its group; a person needs longer to decide.
const ONE_SIGNAL: Duration = Duration::from_secs(1);

/// Whether whoever started this process has it ignore a signal: `nohup`, or a shell without job control
/// for what it starts in the background.
fn is_ignored(signal: i32) -> bool {
    // SAFETY: all-zero bytes are a valid `sigaction`: no handler, an empty mask, no flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: `action` is valid to be written to; nothing is changed.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    asked == 0 && action.sa_sigaction == libc::SIG_IGN && signal != SIGTERM
}

/// P7: what goes beyond a limit of file sizes (`ulimit -f`) fails to be written (EFBIG), as on a full disk; by default the signal
/// would end the process, and a guest that prints enough could bring that about.
pub fn bear_limits_of_files() {
    // SAFETY: a system call; no handler is installed.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Calls `first` in a thread of its own when SIGINT, SIGTERM, SIGQUIT or SIGHUP arrives. A later signal ends the process: the
/// orderly end hangs on a disk that does not answer, say.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn watch(first: impl FnOnce(i32) + Send + 'static) -> std::io::Result<()> {
    let asked =
        [SIGINT, SIGTERM, SIGHUP, SIGQUIT].into_iter().filter(|signal| !is_ignored(*signal));
    let mut signals = Signals::new(asked)?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        seccomp::enter(Role::Signals, &[]);
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
