//! Ctrl-C: a flag that long work polls, so that it can clean up before it ends.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Set when the work must end early.
pub type Flag = Arc<AtomicBool>;

/// A flag that the first Ctrl-C (or SIGTERM, SIGHUP) sets; the second one ends the process at once.
///
/// # Errors
/// No signal handler can be installed.
pub fn flag() -> Result<Flag> {
    static FLAG: OnceLock<Flag> = OnceLock::new();
    if let Some(flag) = FLAG.get() {
        return Ok(Arc::clone(flag));
    }
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // Register in this order: at the first signal the flag is still clear, so the shutdown
        // handler does nothing, and the second handler sets the flag.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .context("cannot listen to signals")?;
    }
    Ok(Arc::clone(FLAG.get_or_init(|| stop)))
}
