//! The last of all bounds: a process that ends has ended after 20 s, whatever it waits for (P9). What it gives back and puts
//! away may lie on storage that does not answer. And what is left to do for a thread that panics, which may itself do nothing.
//!
//! The thread for it is there from the start: whoever ends because there can be no more threads is to end, too.

use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, channel, sync_channel};
use std::time::Duration;

use io_gate_host::backend::terminal::RawMode;
use kemari_confine::logging;
use kemari_confine::seccomp::{self, Role};
use kemari_confine::threads;

/// Whatever has a bound of its own has come to it before (docs/operating.md).
const LONGEST_END: Duration = Duration::from_secs(20);

static TOLD: OnceLock<SyncSender<Told>> = OnceLock::new();

enum Told {
    /// The process ends, with this code.
    Ends(u8),
    /// A thread has panicked, and waits for this.
    Panicked(Box<dyn FnOnce() + Send>),
}

/// Has there be a thread that bounds the end.
///
/// # Errors
/// When there cannot be.
pub(super) fn watch() -> io::Result<()> {
    let (tell, told) = sync_channel(1);
    threads::start("end", move || {
        seccomp::enter(Role::Main, &[]);
        while let Ok(told) = told.recv() {
            match told {
                // The first code counts.
                Told::Ends(code) => {
                    std::thread::sleep(LONGEST_END);
                    end_at_once(code);
                }
                Told::Panicked(work) => work(),
            }
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
        let _ = tell.try_send(Told::Ends(code));
    }
}

/// Has `work` done for a thread that panics, and waits for it no longer than `patience`: it may need a lock that this very thread
/// holds. Not done where the process ends already.
pub(super) fn for_panic(work: impl FnOnce() + Send + 'static, patience: Duration) {
    let Some(tell) = TOLD.get() else { return };
    let (done, is_done) = channel::<()>();
    let work = move || {
        work();
        drop(done);
    };
    if tell.try_send(Told::Panicked(Box::new(work))).is_ok() {
        // Ends when `done` is dropped.
        let _ = is_done.recv_timeout(patience);
    }
}

fn end_at_once(code: u8) {
    RawMode::restore();
    log::error!(
        "the end takes longer than {LONGEST_END:?}: exiting now, without releasing the rest; look for storage that does not \
         answer; the next start may need --seize"
    );
    logging::flush();
    std::process::exit(code.into());
}
