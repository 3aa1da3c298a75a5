//! How fast the storage takes what is queued (R2).

use std::time::Duration;

/// After so many bytes, what was measured before counts half.
const WINDOW: u64 = 64 << 20;

/// The time that operations have taken, and their bytes.
#[derive(Debug, Default)]
pub(super) struct Pace {
    bytes: u64,
    time: Duration,
}

impl Pace {
    /// Operations of so many bytes have taken this time, syncs included.
    pub(super) fn took(&mut self, bytes: u64, time: Duration) {
        self.bytes += bytes;
        self.time += time;
        while self.bytes > WINDOW {
            self.bytes /= 2;
            self.time /= 2;
        }
    }

    /// The time for so many bytes. Zero while nothing was measured.
    pub(super) fn time_for(&self, bytes: u64) -> Duration {
        let seconds = self.time.as_secs_f64() * bytes as f64 / self.bytes.max(1) as f64;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r2_the_time_to_drain_follows_what_was_measured_last() {
        let mut pace = Pace::default();
        assert_eq!(pace.time_for(1 << 20), Duration::ZERO);
        pace.took(1 << 20, Duration::from_millis(10));
        assert_eq!(pace.time_for(3 << 20), Duration::from_millis(30));
        // The storage has become ten times slower.
        for _ in 0..1000 {
            pace.took(1 << 20, Duration::from_millis(100));
        }
        let found = pace.time_for(1 << 20);
        assert!(found > Duration::from_millis(95), "{found:?}");
        assert!(pace.time_for(u64::MAX) > Duration::from_secs(1 << 30));
    }
}
