//! The clock by which the right to perform ages.

use std::time::Duration;

/// Since the host was started, by `CLOCK_BOOTTIME` (clock_gettime(2)): monotonic, at the rate of real time, and it goes on
/// while the host is suspended, which [`std::time::Instant`] does not: a primary that wakes up must find that what it was
/// told is over (P2). Read without a system call.
#[must_use]
pub fn since_boot() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock's number is one of the system's, and `now` is ours to write.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    assert_eq!(result, 0, "P2: Linux has this clock since 2.6.39");
    let seconds = u64::try_from(now.tv_sec).expect("this clock begins at zero");
    let nanos = u32::try_from(now.tv_nsec).expect("below a second, by the call's contract");
    Duration::new(seconds, nanos)
}

/// When something was permitted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment(Duration);

impl Moment {
    pub(crate) fn now() -> Self {
        Self(since_boot())
    }

    pub(crate) fn elapsed(self) -> Duration {
        since_boot().saturating_sub(self.0)
    }
}
