//! The question that is asked before anything is let out: may this machine still perform?

use std::time::Duration;

/// The oldest answer that is acted upon, unless a fence says otherwise: far more than a fence takes, and short enough that
/// whoever wins a term can keep still for longer.
pub const ANSWER_MAX_AGE: Duration = Duration::from_millis(1);

/// The answer to [`Fence::ask`]. It holds for the moment of asking; see [`Fence::good_for`] and [`Fence::max_age`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// This machine has the right: perform now.
    Granted,
    /// Somebody else has, or may have, the right for good: this machine performs nothing, ever again.
    Lost,
    /// Nobody can tell now. What was to be performed waits, and the fence is asked again: the right
    /// may come back (a lease that is renewed when its arbiter is back) or turn out to be lost.
    Unknown,
}

/// Asked right before each effect is performed (P2), unless its last word is [still good](Self::good_for).
pub trait Fence: Send + Sync {
    /// Whether this machine has the right to perform effects now.
    fn ask(&self) -> Permission;

    /// How long a [`Permission::Granted`] may be acted upon, from before it was asked for: not at all, unless whoever takes
    /// the right away keeps still for longer than that.
    fn good_for(&self) -> Duration {
        Duration::ZERO
    }

    /// The oldest [`Permission::Granted`] that may be acted upon, counted from before it was asked for (P2): whoever takes the
    /// right away keeps still for longer than that. An answer that took longer says nothing about now: a process that was
    /// stopped goes on behind the system call that it was in, and that of the fence is one. It is asked for again.
    fn max_age(&self) -> Duration {
        self.good_for().max(ANSWER_MAX_AGE)
    }

    /// Waits until the answer may have changed, no longer than `longest`. Called after
    /// [`Permission::Unknown`], by threads that perform effects.
    fn wait(&self, longest: Duration) {
        std::thread::sleep(longest);
    }

    /// The term in which this machine performs, where terms decide: storage is marked with it.
    fn term(&self) -> Option<u64> {
        None
    }

    /// Who performs in that term: a text that no other process ever has. Storage is marked with it, as two could hold terms
    /// of the same number (an arbiter whose data went back).
    fn holder(&self) -> &str {
        "unnamed"
    }

    /// Why the last answer was not [`Permission::Granted`], for people.
    fn reason(&self) -> String {
        "the right to perform effects is not held".to_owned()
    }
}

/// The fence of a machine that shares its right with nobody: no arbiter, no standby.
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
