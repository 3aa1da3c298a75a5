//! Questions to the fence that are under way. One that is not answered holds effects up as surely as one that nobody can
//! answer, and is told of alike (P9).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::core::POISONED;

/// An answer takes some milliseconds, on a slow network some hundred.
const LATE: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Default)]
pub(crate) struct Asks {
    /// When each was begun: one for each thread that performs, at most.
    under_way: Mutex<Vec<Instant>>,
    told: AtomicBool,
}

/// A question that has no answer yet.
pub(crate) struct UnderWay<'a>(&'a Asks, Instant);

impl Asks {
    /// Until what this gives is dropped, a question is under way.
    pub(crate) fn begin(&self) -> UnderWay<'_> {
        let now = Instant::now();
        self.lock().push(now);
        UnderWay(self, now)
    }

    /// Whether one of them takes long.
    pub(crate) fn are_late(&self) -> bool {
        self.lock().iter().any(|begun| begun.elapsed() >= LATE)
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
    fn lock(&self) -> MutexGuard<'_, Vec<Instant>> {
        self.under_way.lock().expect(POISONED)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut under_way = self.0.lock();
        if let Some(at) = under_way.iter().position(|begun| *begun == self.1) {
            under_way.swap_remove(at);
        }
    }
}
