//! The settings of the primary.

use core::time::Duration;

use crate::Backoff;

/// Settings of the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrimaryOptions {
    /// Whether there is an arbiter. Without one an operator decides.
    pub arbiter: bool,
    /// Whether to look for a standby from the start.
    pub protect: bool,
    /// Interval between heartbeats.
    pub heartbeat_interval: Duration,
    /// How long the standby may be silent once it may hold a checkpoint.
    pub heartbeat_timeout: Duration,
    /// How long a standby that is alive may leave a checkpoint unacknowledged, while output waits
    /// for it (P7).
    pub ack_timeout: Duration,
    /// How long the standby may be silent before it may hold a checkpoint. It delays no output
    /// then.
    pub setup_timeout: Duration,
    /// Wait before an arbiter that did not answer is asked again.
    pub arbiter_retry: Backoff,
    /// Wait before a standby that could not be joined is tried again.
    pub connect_retry: Backoff,
    /// The most epochs that are sealed and not acknowledged: with this many, no epoch is sealed and
    /// the guest runs on.
    pub max_in_flight: usize,
}

/// The default of [`PrimaryOptions::max_in_flight`].
pub const MAX_IN_FLIGHT: usize = 4;

impl Default for PrimaryOptions {
    fn default() -> Self {
        Self {
            arbiter: true,
            protect: true,
            heartbeat_interval: Duration::from_millis(50),
            heartbeat_timeout: Duration::from_millis(500),
            ack_timeout: Duration::from_secs(30),
            setup_timeout: Duration::from_secs(10),
            arbiter_retry: Backoff {
                first: Duration::from_millis(50),
                longest: Duration::from_secs(2),
            },
            connect_retry: Backoff {
                first: Duration::from_millis(200),
                longest: Duration::from_secs(5),
            },
            max_in_flight: MAX_IN_FLIGHT,
        }
    }
}
