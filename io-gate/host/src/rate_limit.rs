//! Keeps a hostile guest from filling the log (P9): logs one warning a second, and counts the rest.

use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(1);

/// One source of warnings.
#[derive(Debug, Default)]
pub(crate) struct RateLimit {
    quiet_until: Option<Instant>,
    suppressed: u64,
}

impl RateLimit {
    /// Logs a warning, unless one was logged in the last second.
    pub(crate) fn warn(&mut self, message: impl FnOnce() -> String) {
        let now = Instant::now();
        if self.quiet_until.is_some_and(|until| now < until) {
            self.suppressed += 1;
            return;
        }
        self.quiet_until = Some(now + INTERVAL);
        match std::mem::take(&mut self.suppressed) {
            0 => log::warn!("{}", message()),
            more => log::warn!("{} (and {more} more like it)", message()),
        }
    }
}
