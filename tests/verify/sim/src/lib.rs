//! Machines, hosts, a network, an arbiter and a storage that run and fail as a seed decides, around
//! the real protocol core, the real gate and the real wire format; and an outside observer that
//! must not notice (P1, P2, P3, P4, P7). See `docs/simulation.md`.
//!
//! Of the product it may depend on `ft-core` and `io-gate` only: a world has no real thread, file,
//! socket or clock.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a violation, told with its seed")]

/// Whether a deliberate bug is active; `false`, without any code, unless the feature `bugs` is on.
#[cfg(feature = "bugs")]
macro_rules! deliberate {
    ($bug:ident) => {
        ft_core::bugs::is(ft_core::bugs::Bug::$bug)
    };
}

#[cfg(not(feature = "bugs"))]
macro_rules! deliberate {
    ($bug:ident) => {
        false
    };
}

mod arbiter;
mod disks;
mod guest;
mod link;
mod node;
mod observer;
mod plan;
mod random;
mod storage;
mod tally;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use disks::DiskFault;
pub use plan::{Fault, Planned, shrink};
pub use tally::Tally;
use world::World;

/// Whether the hosts of a seed's world have own disks: in one world of four.
#[must_use]
pub fn has_own_disks(seed: u64) -> bool {
    seed % 4 == 1
}

/// The plan of a seed.
#[must_use]
pub fn plan(seed: u64) -> Vec<Planned> {
    if has_own_disks(seed) {
        return disks::plan(seed, plan::steps(seed));
    }
    plan::plan(seed, plan::steps(seed), world::NODES)
}

/// Runs one world to its end.
///
/// # Panics
/// When a promise is broken.
#[must_use]
pub fn run(seed: u64, plan: &[Planned], trace: bool) -> Tally {
    if has_own_disks(seed) {
        return disks::World::new(seed, plan, trace).run(plan::steps(seed));
    }
    World::new(seed, plan, trace).run(plan::steps(seed))
}

/// Runs one world; returns what broke, if anything.
///
/// # Errors
/// The promise that was broken, in words.
pub fn try_run(seed: u64, plan: &[Planned]) -> Result<Tally, String> {
    catch_unwind(AssertUnwindSafe(|| run(seed, plan, false))).map_err(|cause| {
        let text = cause.downcast_ref::<String>().cloned();
        text.or_else(|| cause.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
    })
}
