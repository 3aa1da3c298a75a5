//! The settings of the standby.

use core::time::Duration;

use crate::Backoff;

/// Settings of the standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StandbyOptions {
    /// Whether there is an arbiter. Without one an operator decides.
    pub arbiter: bool,
    /// Interval between heartbeats while data arrives: replies to the primary's heartbeats wait
    /// behind the data.
    pub heartbeat_interval: Duration,
    /// How long the primary may be silent once there is a checkpoint.
    pub heartbeat_timeout: Duration,
    /// How long the primary may be silent before there is a checkpoint.
    pub setup_timeout: Duration,
    /// Wait before an arbiter that did not answer is asked again.
    pub arbiter_retry: Backoff,
    /// Staged bytes allowed beyond the size of guest memory.
    pub staging_slack: u64,
}

impl Default for StandbyOptions {
    fn default() -> Self {
        Self {
            arbiter: true,
            heartbeat_interval: Duration::from_millis(50),
            heartbeat_timeout: Duration::from_millis(500),
            setup_timeout: Duration::from_secs(10),
            arbiter_retry: Backoff {
                first: Duration::from_millis(50),
                longest: Duration::from_secs(2),
            },
            staging_slack: 32 << 20,
        }
    }
}
