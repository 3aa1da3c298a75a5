//! The clock that leases are counted by.

use ft_core::Time;
use rustix::time::{ClockId, clock_gettime};

/// Now, by `CLOCK_BOOTTIME` (clock_gettime(2)): monotonic, at the rate of real time, and it goes on while the host is
/// suspended, which [`std::time::Instant`] does not: a primary that wakes up must find that its lease is over (P2).
pub(super) fn boottime() -> Time {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).expect("this clock begins at zero");
    let nanos = u64::try_from(time.tv_nsec).expect("below a second, by the call's contract");
    Time(seconds * 1_000_000_000 + nanos)
}
