//! The fence: it answers, before an effect leaves, whether this machine still has the right to
//! perform effects (P2).

use std::time::Duration;

/// The maximum age of an answer on which a thread acts, unless a fence sets another limit. A fence
/// answers in far less time. The winner of a term waits longer than this before it performs
/// effects.
pub const ANSWER_MAX_AGE: Duration = Duration::from_millis(1);

/// The answer to [`Fence::ask`]. It is true at the time of the question; [`Fence::good_for`] and
/// [`Fence::max_age`] say how long it may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// This machine has the right: perform now.
    Granted,
    /// Another machine has the right, or may have it: this machine never performs anything again.
    Lost,
    /// The answer is not known now. The effect waits, and the fence is asked again. The right may
    /// come back (a lease is renewed when its arbiter answers again), or may turn out to be lost.
    Unknown,
}

/// Answers whether this machine may perform effects. It is asked right before each effect (P2),
/// unless its last answer is [still valid](Self::good_for).
pub trait Fence: Send + Sync {
    /// Whether this machine has the right to perform effects now.
    fn ask(&self) -> Permission;

    /// How long a [`Permission::Granted`] may be reused, counted from before the question. It must
    /// be zero unless a machine that takes the right away waits longer than this before it performs
    /// effects.
    fn good_for(&self) -> Duration {
        Duration::ZERO
    }

    /// The maximum age of a [`Permission::Granted`] on which a thread acts, counted from before the
    /// question (P2). A machine that takes the right away waits longer than this before it performs
    /// effects. An older answer may be out of date: a stopped process continues after the system
    /// call in which it was stopped, and that may be the fence's own. So the fence is asked again.
    fn max_age(&self) -> Duration {
        self.good_for().max(ANSWER_MAX_AGE)
    }

    /// Waits until the answer may have changed, at most `longest`. Threads that perform effects
    /// call it after [`Permission::Unknown`].
    fn wait(&self, longest: Duration) {
        std::thread::sleep(longest);
    }

    /// The term in which this machine performs effects, if there are terms. It is written into the
    /// fence records beside disks.
    fn term(&self) -> Option<u64> {
        None
    }

    /// The holder of that term: a text that no other process ever uses. It is written into the
    /// fence records too, since two processes could hold terms of the same number (after an
    /// arbiter's data went back to an earlier state).
    fn holder(&self) -> &str {
        "unnamed"
    }

    /// Why the last answer was not [`Permission::Granted`], for messages.
    fn reason(&self) -> String {
        "the right to perform effects is not held".to_owned()
    }
}

/// The fence of a machine without arbiter and standby: no other machine can have its right.
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
