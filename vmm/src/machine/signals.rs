//! Signals that ask the process to end: the first ends the machine in good order, the second at once.

use std::time::{Duration, Instant};

use io_gate_host::backend::terminal::RawMode;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::logging;
use crate::seccomp::{self, Role};

/// A supervisor may send one signal twice, to the process and to its group; a person needs longer to decide.
const ONE_SIGNAL: Duration = Duration::from_secs(1);

/// Calls `first` in a thread of its own when SIGINT, SIGTERM or SIGHUP arrives. A later signal ends the process: the
/// orderly end hangs on a disk that does not answer, say.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn watch(first: impl FnOnce(i32) + Send + 'static) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
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
