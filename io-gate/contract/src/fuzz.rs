//! Random guests from seeds. A guest does anything that a guest can do, at random, and the device
//! must tolerate it.
//!
//! A panic in a device ends the machine, and then the standby's machine too, since the state in
//! which the device panics is replicated.
//!
//! A test runs the same guests each time. With `KEMARI_FUZZ_SECONDS=60` it runs other guests for 60
//! s. With `KEMARI_FUZZ_SEED=N` it repeats the guest of seed N.

use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::suite::guarded;
use crate::violation::Violation;

const SEED: &str = "KEMARI_FUZZ_SEED";
const SECONDS: &str = "KEMARI_FUZZ_SECONDS";
/// Number of guests that a test runs. They take some seconds in a build without optimization.
const GUESTS: u64 = 100;

/// Runs random guests. `guest` runs the guest of a seed.
pub(crate) fn run<G>(guest: G) -> Result<(), Violation>
where
    G: Fn(u64) -> Result<(), Violation> + Send + Sync + 'static,
{
    let guest = Arc::new(guest);
    let try_one = |seed| {
        let guest = guest.clone();
        guarded(move || guest(seed)).map_err(|violation| Violation {
            seen: format!(
                "{}; to repeat it, set {SEED}={seed} and run the same command",
                violation.seen
            ),
            ..violation
        })
    };
    if let Some(seed) = variable(SEED) {
        return try_one(seed);
    }
    match variable(SECONDS).map(Duration::from_secs) {
        None => (0..GUESTS).try_for_each(try_one),
        Some(limit) => {
            let (begun, mut seeds) = (Instant::now(), fastrand::Rng::new());
            while begun.elapsed() < limit {
                try_one(seeds.u64(GUESTS..))?;
            }
            Ok(())
        }
    }
}

fn variable<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    let value = text.parse().ok();
    assert!(value.is_some(), "{name}: expected a number, found `{text}`");
    value
}
