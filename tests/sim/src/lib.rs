//! Both machines against each other, from a seed: real gates, the real wire, a guest whose output
//! depends on all its history, links that tear and flip bits, processes that sleep and die, an
//! arbiter that does not always answer; and an outside observer who must not notice (P1, P2, P4, P7).
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a violation, told with its seed")]

mod guest;
mod judge;
mod link;
mod node;
mod random;
mod world;

pub use judge::Tally;
use world::World;

const STEPS: usize = 3000;

/// Runs one world to its end.
///
/// # Panics
/// When a promise is broken.
#[must_use]
pub fn run(seed: u64, trace: bool) -> Tally {
    let mut world = World::new(seed, trace);
    for _ in 0..STEPS {
        world.step();
    }
    world.finish()
}

/// Runs one world, and says what broke, if anything did.
///
/// # Errors
/// The promise that was broken, in words.
pub fn try_run(seed: u64) -> Result<Tally, String> {
    std::panic::catch_unwind(|| run(seed, false)).map_err(|cause| {
        let text = cause.downcast_ref::<String>().cloned();
        text.or_else(|| cause.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
    })
}
