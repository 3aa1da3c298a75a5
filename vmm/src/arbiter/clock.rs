//! The clock that leases are counted by.

use std::ops::{Add, Sub};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A moment by `CLOCK_BOOTTIME` (clock_gettime(2)): monotonic, at the rate of real time, and it goes
/// on while the host is suspended, which [`std::time::Instant`] does not: a primary that wakes up
/// must find that its lease is over (P2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Boottime(Duration);

impl Boottime {
    pub(super) fn now() -> Self {
        let time = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).expect("this clock begins at zero");
        let nanos = u32::try_from(time.tv_nsec).expect("below a second, by the call's contract");
        Self(Duration::new(seconds, nanos))
    }
}

impl Add<Duration> for Boottime {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0 + duration)
    }
}

impl Sub for Boottime {
    type Output = Duration;

    /// The time since `earlier`; zero where it is later.
    fn sub(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}
