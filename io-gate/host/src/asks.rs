//! Questions to the fence that are under way. One that is not answered holds effects up as surely as one that nobody can
//! answer, and is told of alike (P9).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use crate::poisoned::POISONED;

/// An answer takes some milliseconds, on a slow network some hundred.
const LATE: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Default)]
pub(crate) struct Asks {
    /// When each was begun, and by whom: one for each thread that performs, at most.
    under_way: Mutex<Vec<(Instant, ThreadId)>>,
    told: AtomicBool,
}

/// A question that has no answer yet.
pub(crate) struct UnderWay<'a>(&'a Asks, ThreadId);

impl Asks {
    /// Until what this gives is dropped, a question is under way.
    pub(crate) fn begin(&self) -> UnderWay<'_> {
        let own = std::thread::current().id();
        self.lock().push((Instant::now(), own));
        UnderWay(self, own)
    }

    /// Whether one of them takes long.
    pub(crate) fn are_late(&self) -> bool {
        self.lock().iter().any(|(begun, _)| begun.elapsed() >= LATE)
    }

    /// When the one was begun that has been under way for longest.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.lock().iter().map(|(begun, _)| *begun).min()
    }

    /// Whether this thread waits for an answer.
    pub(crate) fn is_asked_by(&self, thread: ThreadId) -> bool {
        self.lock().iter().any(|(_, asking)| *asking == thread)
    }

    /// Says once that they are late, and once that they are no more. To be called now and then.
    pub(crate) fn tell(&self) {
        let late = self.are_late();
        if self.told.swap(late, Ordering::Relaxed) == late {
            return;
        }
        if late {
            log::warn!(
                "effects are held: neither a yes nor a no for {LATE:?}: look for the arbiter's directory, or the storage of a disk's \
                 fence record, that does not answer"
            );
        } else {
            log::info!("effects are held no longer: there is an answer again");
        }
    }

    /// Guards the list only.
    fn lock(&self) -> MutexGuard<'_, Vec<(Instant, ThreadId)>> {
        self.under_way.lock().expect(POISONED)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut under_way = self.0.lock();
        if let Some(at) = under_way.iter().position(|(_, asking)| *asking == self.1) {
            under_way.swap_remove(at);
        }
    }
}
