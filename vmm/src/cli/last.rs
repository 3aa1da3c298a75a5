//! The last time limit: a process that ends is gone after 20 s, whatever it waits for (P9). Its
//! term and its effects may be on storage that does not answer.
//!
//! The same thread also works for a thread that panics, which may do nothing itself.
//!
//! The thread is started first, because the limit must also hold for a process that ends for lack
//! of threads.

use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, channel, sync_channel};
use std::time::Duration;

use io_gate_host::backend::terminal::RawMode;
use kemari_confine::logging;
use kemari_confine::seccomp::Role;
use kemari_confine::threads;

/// Longer than all steps of an end that have a limit of their own (docs/operating.md).
const LONGEST_END: Duration = Duration::from_secs(20);

static NOTICES: OnceLock<SyncSender<Notice>> = OnceLock::new();

enum Notice {
    /// The process ends with this exit code.
    Ends(u8),
    /// A thread has panicked and waits for this work.
    Panicked(Box<dyn FnOnce() + Send>),
}

/// Starts the thread that limits the end.
///
/// # Errors
/// When the thread cannot be started.
pub(super) fn watch() -> io::Result<()> {
    let (notices, notice) = sync_channel(1);
    threads::start("end", Role::Main, move || {
        while let Ok(notice) = notice.recv() {
            match notice {
                // Only the first code counts.
                Notice::Ends(code) => {
                    std::thread::sleep(LONGEST_END);
                    end_at_once(code);
                }
                Notice::Panicked(work) => work(),
            }
        }
    })?;
    // Called once per process.
    let _ = NOTICES.set(notices);
    Ok(())
}

/// Starts the time limit: this process ends with `code`.
pub(super) fn ends(code: u8) {
    if let Some(notices) = NOTICES.get() {
        // The channel is full when the thread already has the first code.
        let _ = notices.try_send(Notice::Ends(code));
    }
}

/// Runs `work` for a thread that panics, and waits for it at most `patience`: the work may need a
/// lock that the panicking thread holds. Does nothing if the process is already ending.
pub(super) fn for_panic(work: impl FnOnce() + Send + 'static, patience: Duration) {
    let Some(notices) = NOTICES.get() else { return };
    let (done, is_done) = channel::<()>();
    let work = move || {
        work();
        drop(done);
    };
    if notices.try_send(Notice::Panicked(Box::new(work))).is_ok() {
        // The channel disconnects when `done` is dropped.
        let _ = is_done.recv_timeout(patience);
    }
}

fn end_at_once(code: u8) {
    RawMode::restore();
    log::error!(
        "the end takes longer than {LONGEST_END:?}: exiting now, without releasing the remaining effects; look for \
        storage that does not answer; the next start may need --seize"
    );
    logging::flush();
    std::process::exit(code.into());
}
