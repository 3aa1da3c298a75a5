//! Pending questions to the fence and to the fence records beside disks (P9).
//!
//! While a question has no answer, effects wait, as they do after the answer "unknown". So a late
//! answer is reported in the same way.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use crate::poisoned::POISONED;

/// An answer is late after this time. Answers take a few milliseconds, or a few hundred
/// milliseconds on a slow network.
const LATE: Duration = Duration::from_secs(1);

/// The list of pending questions.
#[derive(Default)]
pub(crate) struct Asks {
    /// When each question began, and the thread that asks: at most one question for each thread
    /// that performs effects.
    pending: Mutex<Vec<(Instant, ThreadId)>>,
    reported: AtomicBool,
}

/// A question that has no answer yet. Dropping it ends the question.
pub(crate) struct PendingQuestion<'a>(&'a Asks, ThreadId);

impl Asks {
    /// Begins a question, which is pending until the result is dropped.
    pub(crate) fn begin(&self) -> PendingQuestion<'_> {
        let own = std::thread::current().id();
        self.lock().push((Instant::now(), own));
        PendingQuestion(self, own)
    }

    /// Whether a question has been pending for a second or longer.
    pub(crate) fn are_late(&self) -> bool {
        self.lock().iter().any(|(begun, _)| begun.elapsed() >= LATE)
    }

    /// When the oldest pending question began.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.lock().iter().map(|(begun, _)| *begun).min()
    }

    /// Whether this thread waits for an answer.
    pub(crate) fn is_asked_by(&self, thread: ThreadId) -> bool {
        self.lock().iter().any(|(_, asking)| *asking == thread)
    }

    /// Logs once when questions are late, and once when they no longer are. Call it regularly.
    pub(crate) fn tell(&self) {
        let late = self.are_late();
        if self.reported.swap(late, Ordering::Relaxed) == late {
            return;
        }
        if late {
            log::warn!(
                "effects are held: no answer for {LATE:?}: look for an arbiter's directory, or the storage of a \
                 disk's fence record, that does not answer"
            );
        } else {
            log::info!("effects are no longer held: there is an answer again");
        }
    }

    /// Guards the list only.
    fn lock(&self) -> MutexGuard<'_, Vec<(Instant, ThreadId)>> {
        self.pending.lock().expect(POISONED)
    }
}

impl Drop for PendingQuestion<'_> {
    fn drop(&mut self) {
        let mut pending = self.0.lock();
        if let Some(at) = pending.iter().position(|(_, asking)| *asking == self.1) {
            pending.swap_remove(at);
        }
    }
}
