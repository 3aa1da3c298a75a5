//! The last of all bounds: a process that ends has ended after 20 s, whatever it waits for (P9). What it gives back and puts
//! away may lie on storage that does not answer.
//!
//! The thread for it is there from the start: whoever ends because there can be no more threads is to end, too.

use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use io_gate_host::backend::terminal::RawMode;

use crate::seccomp::{self, Role};
use crate::{logging, threads};

/// Whatever has a bound of its own has come to it before (docs/operating.md).
const LONGEST_END: Duration = Duration::from_secs(20);

static TOLD: OnceLock<SyncSender<u8>> = OnceLock::new();

/// Has there be a thread that bounds the end.
///
/// # Errors
/// When there cannot be.
pub(super) fn watch() -> io::Result<()> {
    let (tell, told) = sync_channel(1);
    threads::start("end", move || {
        seccomp::enter(Role::Main, &[]);
        // The first code counts.
        if let Ok(code) = told.recv() {
            std::thread::sleep(LONGEST_END);
            end_at_once(code);
        }
    })?;
    // A process watches once.
    let _ = TOLD.set(tell);
    Ok(())
}

/// From here on this process ends, with `code`.
pub(super) fn ends(code: u8) {
    if let Some(tell) = TOLD.get() {
        // It knows already where there is no room.
        let _ = tell.try_send(code);
    }
}

fn end_at_once(code: u8) {
    RawMode::restore();
    log::error!(
        "the end has taken {LONGEST_END:?}: ending at once, what was not given back is left: look for storage that does not \
         answer; the next start may need --seize"
    );
    logging::flush();
    std::process::exit(code.into());
}
