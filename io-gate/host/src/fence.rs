//! The fence: the question, asked before anything leaves, whether this machine may still perform.

use std::time::Duration;

/// The oldest answer that is acted upon, unless a fence sets another limit. It is far longer than a
/// fence takes, and short enough that the winner of a term can wait longer before it acts.
pub const ANSWER_MAX_AGE: Duration = Duration::from_millis(1);

/// The answer to [`Fence::ask`]. It is valid at the time of the question; see [`Fence::good_for`]
/// and [`Fence::max_age`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// This machine has the right: perform now.
    Granted,
    /// Another machine has, or may have, the right for good: this machine never performs anything
    /// again.
    Lost,
    /// The answer is not known now. The effect waits and the fence is asked again: the right may
    /// come back (a lease that is renewed when its arbiter is back) or turn out to be lost.
    Unknown,
}

/// Asked right before each effect is performed (P2), unless its last answer is [still
/// valid](Self::good_for).
pub trait Fence: Send + Sync {
    /// Whether this machine has the right to perform effects now.
    fn ask(&self) -> Permission;

    /// How long a [`Permission::Granted`] may be reused, counted from before the question. Zero,
    /// unless a machine that takes the right away waits longer than this before it acts.
    fn good_for(&self) -> Duration {
        Duration::ZERO
    }

    /// The oldest [`Permission::Granted`] that may be acted upon, counted from before the question
    /// (P2): a machine that takes the right away waits longer than this before it acts. An answer
    /// that took longer does not describe the present, since a stopped process continues after the
    /// system call that it was in, for instance the fence's own. The fence is then asked again.
    fn max_age(&self) -> Duration {
        self.good_for().max(ANSWER_MAX_AGE)
    }

    /// Waits until the answer may have changed, at most `longest`. Threads that perform effects
    /// call it after [`Permission::Unknown`].
    fn wait(&self, longest: Duration) {
        std::thread::sleep(longest);
    }

    /// The term in which this machine performs, if there are terms. Storage is marked with it.
    fn term(&self) -> Option<u64> {
        None
    }

    /// The holder of that term: a text that no other process ever uses. Storage is marked with it,
    /// since two processes could hold terms of the same number (an arbiter whose data went back).
    fn holder(&self) -> &str {
        "unnamed"
    }

    /// Why the last answer was not [`Permission::Granted`], for messages.
    fn reason(&self) -> String {
        "the right to perform effects is not held".to_owned()
    }
}

/// The fence of a machine that shares its right with no other: without arbiter and standby.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unfenced;

impl Fence for Unfenced {
    fn ask(&self) -> Permission {
        Permission::Granted
    }

    fn max_age(&self) -> Duration {
        Duration::MAX
    }
}
