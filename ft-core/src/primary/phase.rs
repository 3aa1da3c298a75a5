//! The states of the primary.

/// The states; see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Runs without a standby; the gate is open.
    Alone,
    /// Waits for a standby's answer; the gate is open.
    Joining,
    /// Sends memory while the guest runs; the gate is open.
    Copying,
    /// Takes the first checkpoint.
    Sealing,
    /// Sends the first checkpoint.
    Arming,
    /// A standby holds an acknowledged checkpoint.
    Protected,
    /// The standby was asked to give up its checkpoint.
    Detaching,
    /// The standby is unreachable, and the arbiter was asked.
    Doubting,
    /// The standby is unreachable, and there is no arbiter.
    WaitingForOperator,
    /// Performs nothing more.
    Stopped,
}

impl Phase {
    /// The name of the state in the status.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Joining => "joining",
            Self::Copying => "copying",
            Self::Sealing => "sealing",
            Self::Arming => "arming",
            Self::Protected => "protected",
            Self::Detaching => "detaching",
            Self::Doubting => "doubting",
            Self::WaitingForOperator => "waiting-for-operator",
            Self::Stopped => "stopped",
        }
    }

    /// Whether a standby may hold a complete checkpoint of this term, and may therefore win the
    /// next one (P2).
    #[must_use]
    pub const fn standby_may_take_over(self) -> bool {
        matches!(
            self,
            Self::Arming
                | Self::Protected
                | Self::Detaching
                | Self::Doubting
                | Self::WaitingForOperator
        )
    }
}
