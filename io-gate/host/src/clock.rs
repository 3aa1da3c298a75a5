//! The clock that measures the age of a permission (P2).

use std::time::Duration;

/// Time since the host was started, by `CLOCK_BOOTTIME` (clock_gettime(2)). It never steps back and
/// runs at the rate of real time. Unlike [`std::time::Instant`] it advances while the host is
/// suspended: a primary that wakes up must find its lease expired (P2). Reading it takes no system
/// call.
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

/// Formats a time in seconds since 1970: `2026-11-29 08:30:12 UTC`.
#[must_use]
pub fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Count days from 1 March of the year 0: then the leap day is the last day of its year. The
    // Gregorian calendar repeats every 400 years, which are 146097 days.
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + next;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// A time on this clock, for the age of a permission.
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

#[cfg(test)]
mod tests {
    use super::utc;

    #[test]
    fn moments_are_told_by_the_calendar() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_782_399), "2000-02-28 23:59:59 UTC");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(utc(1_795_940_112), "2026-11-29 08:15:12 UTC");
        assert_eq!(utc(4_107_542_400), "2100-03-01 00:00:00 UTC");
    }
}
