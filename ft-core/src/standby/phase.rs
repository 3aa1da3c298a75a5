//! The states of the standby.

/// The states; see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Holds nothing, and waits for a primary.
    Waiting,
    /// A primary has connected.
    Greeting,
    /// Memory arrives; there is no complete checkpoint yet.
    Filling,
    /// Holds a complete checkpoint, and receives the next.
    Ready,
    /// The primary is unreachable, and the arbiter was asked.
    Doubting,
    /// The primary is unreachable, and there is no arbiter.
    WaitingForOperator,
    /// Has taken over: the machine continues as a primary.
    Active,
    /// Does nothing more.
    Stopped,
}

impl Phase {
    /// The name of the state in the status.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Greeting => "greeting",
            Self::Filling => "filling",
            Self::Ready => "ready",
            Self::Doubting => "doubting",
            Self::WaitingForOperator => "waiting-for-operator",
            Self::Active => "active",
            Self::Stopped => "stopped",
        }
    }
}
